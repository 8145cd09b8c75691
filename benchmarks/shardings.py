"""Sharding beside copying and hashing the same files; and what `--resize` costs and buys."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.bench.loader import Setting, feed_rate
from pipeline.bench.spread import ratios, spread, table
from pipeline.data.loader import TrainBatches, train_keys
from pipeline.data.plan import Plan
from shards.build import build
from shards.manifest import Manifest
from shards.readers import find

RESIZE = 256
MORE = 10  # copies of each file, for a set that outweighs the start of a command
OURS, COPY = "alasca shard", "cp -r and sha256sum"


def shard(raw: Path, out: Path, resize: int | None = None) -> Manifest:
    """Class folders -> shards of 250, in this process."""
    return build(find("imagefolder")(raw, None), out, samples_per_shard=250, resize=resize)


def against_copying(raw: Path, scratch: Path, repeats: int) -> dict[str, Any]:
    """Seconds of the command, as it is typed, and of the others, in turn, each until everything is on the disk."""
    found: dict[str, Any] = {}
    out = scratch / "written"
    ways: dict[str, list[Path | str | None]] = {
        OURS: [Path(sys.executable).with_name("alasca"), "shard", "imagefolder", "--root", None, "--out", out],
        COPY: ["sh", "-c", 'cp -r "$1" "$2" && find "$2" -type f -print0 | xargs -0 sha256sum', "sh", None, out],
    }
    for copies in (1, MORE):
        folder = raw if copies == 1 else _repeated(raw, scratch / "more", copies)
        files = [path for path in folder.rglob("*") if path.is_file()]
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, words in ways.items():
                shutil.rmtree(out, ignore_errors=True)
                os.sync()
                began = time.perf_counter()
                subprocess.run([str(word or folder) for word in words], check=True, stdout=subprocess.DEVNULL)
                os.sync()
                seconds[name].append(time.perf_counter() - began)
        size = sum(path.stat().st_size for path in files)
        found[f"{len(files):,} files"] = {"bytes": size, "seconds": seconds}
    for folder in (out, scratch / "more"):
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _repeated(raw: Path, folder: Path, copies: int) -> Path:
    """The class folders with so many copies of each file."""
    for path in sorted(raw.glob("*/*")):
        target = folder / path.parent.name
        target.mkdir(parents=True, exist_ok=True)
        for number in range(copies):
            shutil.copyfile(path, target / f"{path.stem}-{number}{path.suffix}")
    return folder


def against_copying_in_words(found: dict[str, Any]) -> str:
    """Both ways at each size, and the ratio of their speeds."""
    rows = []
    for files, each in found.items():
        theirs, megabytes = each["seconds"][COPY], each["bytes"] / 1e6
        for name, seconds in each["seconds"].items():
            rates = spread([megabytes / one for one in seconds])
            rows.append(
                [f"{files}, {megabytes:,.0f} MB", name, spread(seconds), rates, spread(ratios(theirs, seconds))]
            )
    return table(["of", "by", "s", "MB/s", "speed over that of cp and sha256sum"], rows)


def resized(raw: Path, scratch: Path, manifest: Manifest, setting: Setting) -> dict[str, Any]:
    """Shards with the short side at 256 beside those of the files as they are."""
    began = time.perf_counter()
    small = shard(raw, scratch / "resized", RESIZE)
    found: dict[str, Any] = {"seconds_to_shard": time.perf_counter() - began}
    found["bytes"] = {name: sum(s.bytes for s in m.shards) for name, m in (("as they are", manifest), ("256", small))}
    found["images_per_s"] = {"as they are": [], "256": []}
    for _ in range(setting.repeats):
        for name, each in (("as they are", manifest), ("256", small)):
            found["images_per_s"][name].append(ours(each, setting))
    return found


def ours(manifest: Manifest, setting: Setting) -> float:
    """Images/s of our loader."""
    plan = Plan(manifest, lanes=setting.processes, micro_batch=setting.micro_batch, seed=0)
    dataset = TrainBatches(
        manifest, plan, manifest.labels, crop=setting.crop, augment="resized_crop", flip=True, max_pixels=10**9
    )
    steps = setting.images // plan.global_batch
    return feed_rate(dataset, list(train_keys(plan, range(plan.lanes), 0, steps)), setting)


def resized_in_words(found: dict[str, Any]) -> str:
    """What it costs once, and buys in every epoch."""
    rates = found["images_per_s"]
    rows = [
        [
            name,
            f"{found['bytes'][name] / 1e6:,.1f}",
            spread(rates[name]),
            spread(ratios(rates[name], rates["as they are"])),
        ]
        for name in rates
    ]
    said = f"\nSharding with `--resize {RESIZE}` took {found['seconds_to_shard']:.1f} s."
    return table(["short side", "MB of shards", "loader, images/s", "over as they are"], rows) + "\n" + said
