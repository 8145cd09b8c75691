"""Throughput and memory of cross entropy, GCE, ALASCA and the Lipschitz penalties, taken in turn in one run."""

import argparse
import gc
import importlib
import json
import shlex
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks import commandline, machine, memory, tables
from benchmarks.commandline import positive
from benchmarks.variants import METHODS, PLAIN, TIMM, Batch, Setting, Step, Variant, noise, prepare
from pipeline.model.backbone import BACKBONES, STEMS
from pipeline.train import dist
from pipeline.train.dist import World
from shards.errors import InputError

EXAMPLE = """example:
  python -m benchmarks.methods --model resnet18 --size 64 --peers --json benchmarks/results/cpu.json

The table goes to standard output, progress to standard error. Images are noise that already lies on the device: reading
and decoding are not in the figures."""


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = commandline.parser("methods", __doc__, EXAMPLE)
    add = parser.add_argument
    add("--model", choices=BACKBONES, default="resnet18", help="default: %(default)s")
    add("--stem", choices=STEMS, default="imagenet", help="small: 3x3 without max-pool; default: %(default)s")
    add("--width", type=positive, help="channels of the first stage, of resnet10 and resnet20; default: theirs")
    add("--size", type=positive, default=64, help="side of the images in pixels; default: %(default)s")
    add("--classes", type=positive, default=10, help="default: %(default)s")
    add("--micro-batch", type=positive, default=32, help="images of one forward; default: %(default)s")
    add("--micro-batches", type=positive, default=1, help="forwards of one step; default: %(default)s")
    add("--steps", type=positive, default=3, help="timed steps of a repeat; default: %(default)s")
    add("--repeats", type=positive, default=5, help="rounds through all variants; default: %(default)s")
    add("--warmup", type=positive, default=3, help="steps of each variant before the first round; default: %(default)s")
    add("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="as engine.precision")
    layout = parser.add_mutually_exclusive_group()
    layout.add_argument("--channels-last", action="store_true", default=True, help="the default")
    layout.add_argument("--contiguous", action="store_false", dest="channels_last")
    add("--peers", action="store_true", help="also a plain torch loop, and timm if it is installed")
    add("--best", action="store_true", help="also each method in the other layout, and compiled (needs a compiler)")
    add("--compiler", choices=("inductor", "aot_eager"), default="inductor", help="aot_eager: quick, to try --best")
    add("--json", type=Path, metavar="FILE", help="write every sample, the machine and the versions")
    add("--memory-of", help=argparse.SUPPRESS)  # what a process of its own is asked for
    return parser.parse_args(given)


class Run:
    """One interleaved run: variants are made ready one after the other, then timed in turn."""

    def __init__(self, setting: Setting, world: World, warmup: int) -> None:
        self.setting, self.world, self.warmup = setting, world, warmup
        self.batches: list[Batch] = noise(setting, world.device)
        self.steps: dict[Variant, Step] = {}
        self.failed: dict[Variant, str] = {}
        self.memory: dict[Variant, int] = {}
        self.samples: tables.Samples = {}

    def ready(self, variant: Variant) -> None:
        """Build a variant and let it take its first steps; what cannot run is kept in `failed` with the reason."""
        began = time.perf_counter()
        on_gpu = self.world.device.type == "cuda"
        try:
            if on_gpu:
                self.memory[variant] = memory.gpu_peak(lambda: self._first_steps(variant), self.world.device)
            else:
                self._first_steps(variant)
        except torch.cuda.OutOfMemoryError:
            self._drop(variant, "out of memory")
        except Exception as error:
            if not variant.compiled:
                raise
            # torch.compile refuses with many types of error. HAR's is our own assertion: a compiled graph has no
            # BatchNorm outputs that autograd could see.
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            self._drop(variant, f"refused: {type(error).__name__}: {first[:120]}")
        say(f"{variant}: {self.failed.get(variant, 'ready')} ({time.perf_counter() - began:.1f} s)")

    def _first_steps(self, variant: Variant) -> None:
        self.steps[variant] = prepare(variant, self.setting, self.world, self.batches)
        for _ in range(self.warmup):
            self.steps[variant]()

    def _drop(self, variant: Variant, reason: str) -> None:
        self.failed[variant] = reason
        self.steps.pop(variant, None)
        gc.collect()
        if self.world.device.type == "cuda":
            torch.cuda.empty_cache()

    def take(self, repeats: int, steps: int) -> None:
        """Go round all variants `repeats` times; each time one step without the clock, then `steps` with it."""
        self.samples = {variant: [] for variant in self.steps}
        for repeat in range(repeats):
            began = time.perf_counter()
            for variant, step in self.steps.items():
                loss = step()  # without the clock: the variant before it left its own data in the caches
                seconds = self._seconds(step, steps)
                assert bool(loss.isfinite()), f"{variant}: the loss is {float(loss)}"
                self.samples[variant].append(steps * self.setting.images_per_step / seconds)
            taken = ", ".join(f"{v} {values[-1]:.1f}" for v, values in self.samples.items())
            say(f"repeat {repeat + 1}/{repeats} ({time.perf_counter() - began:.1f} s), images/s: {taken}")

    def _seconds(self, step: Callable[[], Any], steps: int) -> float:
        self._wait()
        began = time.perf_counter()
        for _ in range(steps):
            step()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)


def variants(channels_last: bool, peers: list[str], best: bool) -> list[Variant]:
    """What is timed, in this order: like for like first, then the other ways to run our methods."""
    alike = [Variant(name, channels_last) for name in [*METHODS, *peers]]
    if not best:
        return alike
    others = [Variant(name, not channels_last) for name in METHODS]
    return alike + others + [Variant(name, channels_last, compiled=True) for name in METHODS]


def available_peers(model: str, width: int | None) -> tuple[list[str], dict[str, str]]:
    """Peers that can run, and why the others cannot."""
    try:
        timm = importlib.import_module("timm")
    except ImportError:
        return [PLAIN], {TIMM: "not installed (pip install timm)"}
    if not timm.is_model(model) or width is not None:
        return [PLAIN], {TIMM: f"has no {model}" + ("" if width is None else " of another width")}
    return [PLAIN, TIMM], {}


def markdown(run: Run, options: argparse.Namespace, found: dict[str, Any], absent: dict[str, str]) -> str:
    """Everything a reader needs to judge the figures."""
    setting, layout = run.setting, options.channels_last
    width = "" if setting.width is None else f" of width {setting.width}"
    alike = {v.method: v for v in run.samples if v.channels_last == layout and not v.compiled}
    on_gpu = run.world.device.type == "cuda"
    peaks = found["memory"]
    parts = [
        f"{machine.in_words(found['machine'])}.\n",
        f"`{found['command']}`\n",
        f"{setting.model}{width}, {setting.stem} stem, {setting.size} pixels, {setting.classes} classes, "
        f"{setting.micro_batches} x {setting.micro_batch} images a step, precision {setting.precision}, "
        f"{Variant('', layout).way}. Median [lowest-highest] of {options.repeats} repeats in turn, {options.steps} "
        "steps each; ratios are taken within a repeat.\n",
        tables.methods(run.samples, peaks, run.failed, layout),
        f"\nMemory: {memory.ON_GPU if on_gpu else memory.ON_CPU}.",
        f"\nLike for like, both {Variant('', layout).way}, same precision:\n",
        tables.against_penalties(run.samples, alike),
    ]
    if options.peers:
        parts += ["\nPeers, like for like:\n", tables.peers(run.samples, peaks, absent, layout)]
    if options.best:
        parts += [
            f"\nEvery way, the best of each method in bold (compiled by {setting.compiler}):\n",
            tables.best(run.samples, run.failed),
        ]
        parts += ["\nBest against best (NOT like for like: layouts differ, only one side may be compiled):\n"]
        parts += [tables.against_penalties(run.samples, tables.best_ways(run.samples))]
    return "\n".join(parts)


def measure(options: argparse.Namespace, setting: Setting, given: list[str]) -> None:
    """Run everything, print the tables and write the file."""
    found: dict[str, Any] = {"command": shlex.join(["python", "-m", "benchmarks.methods", *given])}
    peers, absent = available_peers(setting.model, setting.width) if options.peers else ([], {})
    alike = variants(options.channels_last, peers, best=False)
    load = machine.facts()["load"]
    peaks: dict[str, int | None] = {}
    if not torch.cuda.is_available():
        names = [variant.method for variant in alike]
        with ThreadPoolExecutor(2) as pool:  # nothing is timed yet
            for name, peak in zip(names, pool.map(lambda name: memory.in_own_process(name, given), names), strict=True):
                peaks[name] = peak
                say(f"{name}: peak memory {peak} bytes")
    world = dist.start(600)
    found["machine"] = {**machine.facts(), "load": load}
    run = Run(setting, world, options.warmup)
    for variant in variants(options.channels_last, peers, options.best):
        run.ready(variant)
    run.take(options.repeats, options.steps)
    dist.stop()
    found["memory"] = peaks or {v.method: run.memory.get(v) for v in alike}
    found["memory_means"] = memory.ON_CPU if peaks else memory.ON_GPU
    found["settings"] = {k: v for k, v in vars(options).items() if k not in ("json", "memory_of")}
    found["images_per_s"] = {str(variant): values for variant, values in run.samples.items()}
    found["failed"] = {str(variant): why for variant, why in run.failed.items()} | absent
    print(markdown(run, options, found, absent))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")
        say(f"wrote {options.json}")


def own_memory(options: argparse.Namespace, setting: Setting) -> None:
    """In a process of its own: print the peak of one method on the CPU."""
    world = dist.start(600)
    step = prepare(Variant(options.memory_of, options.channels_last), setting, world, noise(setting, world.device))
    peak = memory.cpu_peak(step, options.warmup)
    dist.stop()
    print(memory.MARK, json.dumps(peak))


def say(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


def main(given: list[str]) -> int:
    """Run the benchmark; 2 for a user's mistake."""
    options = arguments(given)
    setting = Setting(**{key: getattr(options, key) for key in Setting.__dataclass_fields__})
    try:
        if options.memory_of:
            own_memory(options, setting)
        else:
            measure(options, setting, given)
    except InputError as error:
        say(f"benchmarks.methods: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
