"""Sharding beside copying and hashing the same files; and what `--resize` costs and buys."""

import os
import shutil
import subprocess
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


def shard(raw: Path, out: Path, resize: int | None = None) -> Manifest:
    """Class folders -> shards of 250, as `alasca shard imagefolder` does."""
    return build(find("imagefolder")(raw, None), out, samples_per_shard=250, resize=resize)


def against_copying(raw: Path, scratch: Path, repeats: int) -> dict[str, Any]:
    """Seconds of both, in turn, each until everything is on the disk."""
    found: dict[str, Any] = {"bytes": sum(path.stat().st_size for path in raw.rglob("*") if path.is_file())}
    seconds: dict[str, list[float]] = {"shard": [], "cp -r and sha256sum": []}
    for _ in range(repeats):
        for name in seconds:
            out = scratch / "written"
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            began = time.perf_counter()
            if name == "shard":
                shard(raw, out)
            else:
                copied = 'cp -r "$1" "$2" && find "$2" -type f -print0 | xargs -0 sha256sum'
                subprocess.run(["sh", "-c", copied, "sh", str(raw), str(out)], check=True, stdout=subprocess.DEVNULL)
            os.sync()
            seconds[name].append(time.perf_counter() - began)
    shutil.rmtree(scratch / "written", ignore_errors=True)
    return found | {"seconds": seconds}


def against_copying_in_words(found: dict[str, Any]) -> str:
    """Both, and the ratio of their speeds."""
    theirs = found["seconds"]["cp -r and sha256sum"]
    megabytes = found["bytes"] / 1e6
    rows = [
        [name, spread(seconds), spread([megabytes / each for each in seconds]), spread(ratios(theirs, seconds))]
        for name, seconds in found["seconds"].items()
    ]
    return table(["the same files", "s", "MB/s", "speed over that of cp and sha256sum"], rows)


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
