"""The data plane beside others in one run: decoders, loaders, sharding, memory, order."""

import argparse
import dataclasses
import json
import shlex
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import commandline, decoding, machine, peers, shardings, workers
from benchmarks.commandline import positive
from pipeline.bench import loader, plan
from pipeline.bench.loader import Setting
from pipeline.bench.spread import ratios, spread, table
from pipeline.data.loader import train_keys
from pipeline.data.plan import Plan
from shards.errors import InputError
from shards.manifest import Manifest

EXAMPLE = """example:
  python -m benchmarks.loader photos.zip --json benchmarks/results/loader.json

PHOTOS holds JPEG files as train/CLASS/*.jpg. Peers that are not installed are named; PYTHONPATH may lead to some that
are installed elsewhere. The tables go to standard output, progress to standard error."""

PARTS = ("decoding", "bare", "loaders", "resize", "sharding", "memory", "plan")
OURS, BARE, OURS_BYTES = "ours", "ours, bare loop", "ours, bytes only"


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = commandline.parser("loader", __doc__, EXAMPLE)
    add = parser.add_argument
    add("photos", type=Path, metavar="PHOTOS", help="zip file or folder")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    add("--workers", type=int, default=2, help="default: %(default)s")
    add("--crop", type=positive, default=224, help="default: %(default)s")
    add("--batch", type=positive, default=64, help="default: %(default)s")
    add("--images", type=positive, default=1536, help="timed in a repeat of a loader; default: %(default)s")
    add("--decoded", type=positive, default=300, help="images of a repeat of a decoder; default: %(default)s")
    add("--repeats", type=positive, default=5, help="default: %(default)s")
    add("--rows", type=positive, default=2_400_000, help="of the table whose memory is taken; default: %(default)s")
    add("--samples", type=positive, default=14_000_000, help="of the order that is made; default: %(default)s")
    add("--scratch", type=Path, help="folder on the disk to measure, emptied afterwards (default: a temporary one)")
    add("--json", type=Path, metavar="FILE", help="write every sample, the machine and the versions")
    return parser.parse_args(given)


def unpack(photos: Path, scratch: Path) -> Path:
    """The folder of class folders.

    Raises:
        InputError: no zip file or folder, or nothing in train/CLASS/.
    """
    folder = photos
    if zipfile.is_zipfile(photos):
        folder = scratch / "raw"
        with zipfile.ZipFile(photos) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith("train/")])
    train = folder / "train"
    if not any(train.glob("*/*.jpg")):
        raise InputError(f"{photos}: give a zip file or a folder that holds train/CLASS/*.jpg")
    return train


def loaders(place: peers.Place, setting: Setting) -> dict[str, Any]:
    """Images/s of every loader with every decoder, in turn."""
    there, absent = peers.available()
    ways: dict[str, Callable[[], float]] = {}
    manifest = place.manifest
    order = Plan(manifest, lanes=setting.processes, micro_batch=setting.micro_batch, seed=0)
    keys = list(train_keys(order, range(order.lanes), 0, setting.images // order.global_batch))
    ways[OURS] = lambda: shardings.ours(manifest, setting)
    ways[BARE] = lambda: loader.bare_rate(manifest, order, keys, setting)
    ways[OURS_BYTES] = lambda: loader.feed_rate(loader.Encoded(manifest, order), keys, setting)
    transforms: dict[str, peers.Transform] = {
        "Pillow": peers.ByPillow(setting.crop),
        "our decode and crop": peers.ByUs(setting.crop),
        "bytes only": peers.as_it_is,
    }
    for name in there:
        own = {"Pillow, ToTensor, Normalize": peers.AsUsers(setting.crop)} if name == "webdataset" else {}
        for kind, transform in (own | transforms).items():
            ways[f"{name}, {kind}"] = partial(_peer, name, transform, place, setting)
    rates: dict[str, list[float]] = {}
    for repeat in range(setting.repeats + 1):  # the first without the clock: formats are written, files are read
        for way in [way for way in ways if way not in absent]:
            began = time.perf_counter()
            try:
                rates.setdefault(way, []).append(ways[way]())
            except Exception as error:  # a peer that its own defects end is named, and ends nothing else
                if way in (OURS, BARE, OURS_BYTES):
                    raise
                absent[way] = f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:150]}"
            done = absent.get(way) or f"{rates[way][-1]:,.0f} images/s"
            say(f"repeat {repeat}/{setting.repeats}, {way}: {done} ({time.perf_counter() - began:.1f} s)")
    timed = {way: values[1:] for way, values in rates.items() if way not in absent}
    return {"images_per_s": timed, "absent": absent}


def _peer(name: str, transform: peers.Transform, place: peers.Place, setting: Setting) -> float:
    batches = peers.PEERS[name][1](place, transform)
    timed = setting.images // setting.micro_batch
    return loader.steady(batches, setting.processes, timed, setting.micro_batch)


def loaders_in_words(found: dict[str, Any], processes: int) -> str:
    """Pixels, then bytes; each with our speed over its."""
    rates, parts = found["images_per_s"], []
    for ours, title in ((OURS, "decode, crop, flip"), (OURS_BYTES, "bytes only")):
        rows = [
            [name, spread(values), spread([value / processes for value in values]), spread(ratios(rates[ours], values))]
            for name, values in rates.items()
            if ("bytes only" in name) == (ours == OURS_BYTES)
        ]
        parts.append(table([title, "images/s", "of each worker", "ours over it"], rows))
    return "\n\n".join(parts + [f"{name}: {why}." for name, why in found["absent"].items()])


def measure(options: argparse.Namespace, scratch: Path, given: list[str]) -> None:
    """Run the parts, print the tables and write the file."""
    # Published as names: where they lie on a machine is nobody else's.
    words = [options.photos.name if word == str(options.photos) else word for word in given]
    found: dict[str, Any] = {"command": shlex.join(["python", "-m", "benchmarks.loader", *words])}
    found["machine"] = machine.facts()
    found["settings"] = {k: v.name if isinstance(v, Path) else v for k, v in vars(options).items() if k != "json"}
    raw = unpack(options.photos, scratch)
    manifest = shardings.shard(raw, scratch / "shards")
    setting = Setting(options.workers, options.crop, options.batch, options.images, options.repeats)
    place = peers.Place(raw, manifest, scratch, options.workers, options.batch)
    parts: dict[str, Callable[[], str]] = {
        "decoding": lambda: decoding.markdown(_keep(found, "decoding", _decoding(raw, options))),
        "bare": lambda: _bare(found, manifest, setting),
        "loaders": lambda: loaders_in_words(_keep(found, "loaders", loaders(place, setting)), setting.processes),
        "resize": lambda: shardings.resized_in_words(
            _keep(found, "resize", shardings.resized(raw, scratch, manifest, setting))
        ),
        "sharding": lambda: shardings.against_copying_in_words(
            _keep(found, "sharding", shardings.against_copying(raw, scratch, options.repeats))
        ),
        "memory": lambda: workers.markdown(*_memory(found, manifest, scratch, options)),
        "plan": lambda: _plan(found, options),
    }
    print(f"{machine.in_words(found['machine'])}.\n\n`{found['command']}`\n")
    print(
        f"{manifest.num_samples:,} photographs, {options.workers} workers, crop {options.crop}, batches of"
        f" {options.batch}. Median [lowest-highest] of {options.repeats} repeats in turn; ratios are taken within a"
        " repeat. Files are in the page cache."
    )
    for name in options.parts:
        began = time.perf_counter()
        print(f"\n### {name}\n\n{parts[name]()}", flush=True)
        say(f"{name}: {time.perf_counter() - began:.0f} s")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")
        say(f"wrote {options.json}")


def _keep(found: dict[str, Any], name: str, part: dict[str, Any]) -> dict[str, Any]:
    found[name] = part
    return part


def _decoding(raw: Path, options: argparse.Namespace) -> dict[str, Any]:
    files = sorted(raw.glob("*/*.jpg"))
    every = max(1, len(files) // options.decoded)
    threads = torch.get_num_threads()
    try:
        encoded = [path.read_bytes() for path in files[::every][: options.decoded]]
        return decoding.measure(encoded, options.crop, options.repeats)
    finally:
        torch.set_num_threads(threads)


def _bare(found: dict[str, Any], manifest: Manifest, setting: Setting) -> str:
    """One worker, beside which the run's own process has a core even where there are two; then as many as asked for."""
    found["bare"], said = [], []
    for count in sorted({1, setting.workers}):
        figures = loader.measure(manifest, dataclasses.replace(setting, workers=count))
        found["bare"].append(dataclasses.asdict(figures))
        said.append("\n".join(loader.lines(figures)))
    return "\n\n".join(said)


def _memory(found: dict[str, Any], manifest: Manifest, scratch: Path, options: argparse.Namespace) -> Any:
    large = workers.repeated(manifest, scratch / "large", options.rows)
    both = {"large": large, "small": manifest}
    of_table = workers.of_a_table(both, batches=64, workers=8, crop=options.crop)
    epochs = workers.over_epochs(manifest, epochs=3, crop=options.crop)
    found["memory"] = {"table": of_table, "over_epochs": epochs}
    return of_table, epochs


def _plan(found: dict[str, Any], options: argparse.Namespace) -> str:
    sizes, said = plan.even_shards(options.samples, max(1, options.samples // 1000)), []
    found["plan"] = []
    for world in (8, 1):
        figures = plan.measure(sizes, lanes=8, micro_batch=32, world=world, repeats=options.repeats)
        found["plan"].append(dataclasses.asdict(figures))
        said += ["- " + line for line in plan.lines(figures)]
    return "\n".join(said)


def say(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


def main(given: list[str]) -> int:
    """Run the benchmark; 2 for a user's mistake."""
    options = arguments(given)
    if options.scratch:
        options.scratch.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="alasca-loader-", dir=options.scratch))
    try:
        measure(options, scratch, given)
    except InputError as error:
        say(f"benchmarks.loader: {error}")
        return 2
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
