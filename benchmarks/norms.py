"""What the running estimate of the Jacobian's norms costs a run: `python -m benchmarks.norms`."""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.variants import LR, Setting, noise
from pipeline.config import Engine as EngineConfig
from pipeline.config import Optim, Track
from pipeline.method.objective import Objective
from pipeline.model.backbone import build
from pipeline.train import dist
from pipeline.train.engine import Engine
from pipeline.train.norms import JacobianNorms

EPOCH = 15

Work = Callable[[], None]


def measure(setting: Setting, world: dist.World, repeats: int, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of a cross-entropy step and of one estimate, [repeats] each, taken in turn."""
    engine = Engine(
        build(setting.model, setting.classes, "none", stem=setting.stem, width=setting.width),
        Optim(epochs=1),
        EngineConfig.model_validate({"precision": setting.precision}),
        world,
        setting.micro_batch,
        setting.micro_batches,
    )
    engine.train()
    norms = JacobianNorms(engine.module, 0, setting.micro_batches, channels_last=True)
    objective, batch = Objective(), noise(setting, world.device)[0]

    def step() -> None:
        for _ in range(setting.micro_batches):
            main, aux = engine.forward(batch.images)
            engine.backward(objective(main, aux, batch.labels, batch.positions, batch.valid, EPOCH).total)
        engine.step(LR)

    def estimate() -> None:
        for _ in range(setting.micro_batches):
            norms.take(batch.images, batch.positions, batch.valid)
        norms.record(EPOCH)

    return _in_turn(step, estimate, world.device, repeats, steps)


def _in_turn(
    step: Work, estimate: Work, device: torch.device, repeats: int, steps: int
) -> tuple[list[float], list[float]]:
    found: tuple[list[float], list[float]] = ([], [])
    for repeat in range(-1, repeats):  # the first only warms up
        for work, count, seconds in ((step, steps, found[0]), (estimate, 1, found[1])):
            began = time.perf_counter()
            for _ in range(count):
                work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat >= 0:
                seconds.append((time.perf_counter() - began) / count)
    return found


def main() -> None:
    """Measure and print one line; with --json also write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.norms", description=__doc__)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--micro-batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5, help="steps timed together in a repeat")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    setting = Setting(options.model, "imagenet", options.size, 10, options.micro_batch, 1, "auto")
    about = machine.facts()
    steps, estimates = measure(setting, dist.start(600), options.repeats, options.steps)
    every = Track().norms
    shares = [estimate / (every * step) for step, estimate in zip(steps, estimates, strict=True)]
    found = {"machine": about, "every": every, "step_s": steps, "estimate_s": estimates, "share": shares}
    print(
        f"{machine.in_words(about)}\n{setting.model}, {setting.size} pixels, {setting.micro_batch} images a step: an "
        f"estimate every {every} steps takes {statistics.median(shares):.2%} [{min(shares):.2%}-{max(shares):.2%}] of "
        f"the time of these steps ({statistics.median(estimates):.3f} s and {statistics.median(steps):.3f} s each)"
    )
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    dist.stop()


if __name__ == "__main__":
    main()
