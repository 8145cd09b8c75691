"""Memory of data workers: over epochs, and over a sample table of millions of rows."""

import hashlib
import json
import os
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bench.memory import proportional, resident
from pipeline.bench.spread import table
from pipeline.data.loader import Feed, TrainBatches, train_keys
from pipeline.data.plan import Plan
from shards.manifest import INDEX, KEYS, MANIFEST, SAMPLES, Manifest

_FIELDS = ("RSS", "PSS", "own", "mapped")
_LANES = 8


def repeated(manifest: Manifest, folder: Path, samples: int) -> Manifest:
    """A dataset of that many rows, whose shards are all links to the first shard of another."""
    first = manifest.shards[0]
    rows = np.array(manifest.table[: first.samples])
    shards = samples // first.samples
    folder.mkdir(parents=True)
    everything = np.tile(rows, shards)
    everything["shard"] = np.repeat(np.arange(shards), first.samples)
    everything["key"] = 0
    np.save(folder / SAMPLES, everything)
    (folder / KEYS).write_bytes(b"k")
    document = json.loads((manifest.root / MANIFEST).read_text())
    entry = next(entry for entry in document["shards"] if entry["name"] == first.name)
    document["shards"] = [entry | {"name": f"shard-{number:06d}.tar"} for number in range(shards)]
    document["source"]["reader"] = INDEX  # as of tars by others: names in them do not follow the order of this table
    for shard in document["shards"]:
        os.link(manifest.root / first.name, folder / shard["name"])
    for name in (SAMPLES, KEYS):
        content = (folder / name).read_bytes()
        document["table"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(document))
    return Manifest.load(folder)


def _memory(feed: Feed) -> list[dict[str, int]]:
    """Bytes of each worker."""
    pids = [worker.pid for worker in feed._workers if worker.pid is not None]
    return [
        {
            "RSS": resident("VmRSS", pid),
            "PSS": proportional(pid),
            "own": resident("RssAnon", pid),
            "mapped": resident("RssFile", pid),
        }
        for pid in pids
    ]


def _feed(manifest: Manifest, steps: int | None, workers: int, crop: int) -> tuple[Feed, Plan]:
    plan = Plan(manifest, lanes=_LANES, micro_batch=8, seed=0)
    dataset = TrainBatches(
        manifest, plan, manifest.labels, crop=crop, augment="resized_crop", flip=True, max_pixels=10**9
    )
    keys = train_keys(plan, range(_LANES), 0, steps or 10**9)
    return Feed(dataset, keys, workers, pin=False), plan


def of_a_table(manifests: dict[str, Manifest], batches: int, workers: int, crop: int) -> dict[str, Any]:
    """Memory of `workers` after some batches of each dataset."""
    found: dict[str, Any] = {"workers": workers, "datasets": {}}
    for name, manifest in manifests.items():
        feed, _ = _feed(manifest, None, workers, crop)
        with closing(feed):
            for _ in islice(feed, batches):
                pass
            found["datasets"][name] = {
                "rows": manifest.num_samples,
                "table_bytes": manifest.file_path(SAMPLES).stat().st_size,
                "memory": _memory(feed),
            }
    return found


def over_epochs(manifest: Manifest, epochs: int, crop: int) -> dict[str, Any]:
    """Memory of one worker at the end of each epoch."""
    found: list[dict[str, int]] = []
    feed, plan = _feed(manifest, None, 1, crop)
    with closing(feed):
        for _ in range(epochs):
            for _ in islice(feed, plan.steps_per_epoch * _LANES):
                pass
            found += _memory(feed)
    return {"epochs": found}


def markdown(of_table: dict[str, Any], epochs: dict[str, Any]) -> str:
    """Totals of the workers, then one of them over epochs."""
    rows = []
    for name, each in of_table["datasets"].items():
        totals = {field: sum(memory[field] for memory in each["memory"]) for field in _FIELDS}
        cells = [f"{totals[field] / 1e6:,.0f}" for field in _FIELDS]
        rows.append([name, f"{each['rows']:,}", f"{each['table_bytes'] / 1e6:,.1f}", *cells])
    head = ["dataset", "rows", "table MB", *(f"{field} MB of {of_table['workers']} workers" for field in _FIELDS)]
    later = [[str(n + 1), *(f"{m[field] / 1e6:,.1f}" for field in _FIELDS)] for n, m in enumerate(epochs["epochs"])]
    return "\n\n".join([table(head, rows), table(["epoch", *(f"{f} MB of a worker" for f in _FIELDS)], later)])
