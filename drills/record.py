"""What lies in a run's folder, as a drill looks at it: steps, checkpoints, what is torn, what differs."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pipeline.record.metrics import timeless
from pipeline.record.track import read_metrics
from pipeline.train.checkpoint import MODEL, complete, read_index

_CLOSE = 1e-5  # relative: what averaging BatchNorm's float32 statistics once more may change


def steps(run: Path, since: float = 0.0) -> list[int]:
    """Steps with a training line that was written after `since` (Unix seconds), in order."""
    return [r["step"] for r in read_metrics(run) if r["kind"] == "train" and r["time"] > since]


def evaluated(run: Path) -> set[int]:
    """Steps with an evaluation."""
    return {r["step"] for r in read_metrics(run) if r["kind"] == "eval"}


def saved(run: Path) -> int:
    """Step of the newest complete checkpoint; 0 where there is none."""
    found = complete(run / "checkpoints")
    return int(found[-1].name[5:]) if found else 0


def writing(run: Path) -> set[str]:
    """Names of the checkpoints that are being written, or that a kill left half written."""
    return {path.name for path in (run / "checkpoints").glob(".step-*.tmp")}


def partial(*folders: Path) -> list[str]:
    """Whatever in the folders bears the name of something unfinished, or lies unfinished in a checkpoint."""
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            unfinished = path.suffix in (".tmp", ".part", ".old") or path.name.startswith((".done-", ".attempt-"))
            if unfinished and "wandb" not in path.relative_to(folder).parts:
                found.append(str(path.relative_to(folder.parent)))
    return found


def comparison(run: Path, straight: Path, *statuses: int, more_saves: bool = False) -> dict[str, Any]:
    """Fields of the row of a run that came to its end: whether it is as the undisturbed one, and what is not."""
    problems = differences(run, straight, more_saves=more_saves)
    same = "yes, bit for bit" + ("; BatchNorm's averages within rounding" if more_saves else "")
    return {
        "status": ", ".join(map(str, statuses)),
        "lost": "0 steps",
        "same": "no" if problems else same,
        "problems": problems + [f"exit status {status}" for status in statuses if status],
    }


def differences(run: Path, straight: Path, *, more_saves: bool = False) -> list[str]:
    """What in the last checkpoint, the record and the summary of a run is not as in the undisturbed one.

    Args:
        run: the disturbed one.
        straight: the undisturbed one, of as many processes.
        more_saves: it was also saved at other steps. Each save averages BatchNorm's running statistics over the ranks,
            which rounds; these, and losses of evaluations, are then compared within rounding.
    """
    found = []
    paths = [complete(folder / "checkpoints")[-1] for folder in (run, straight)]
    if paths[0].name != paths[1].name:
        return [f"the last checkpoint is {paths[0].name}, not {paths[1].name}"]
    files = [read_index(path)["files"] for path in paths]
    if files[0].keys() != files[1].keys():
        found.append(f"the last checkpoint holds {sorted(files[0])}, not {sorted(files[1])}")
    for name in files[0].keys() & files[1].keys():
        digests = [hashlib.sha256((path / name).read_bytes()).hexdigest() for path in paths]
        if digests[0] != files[0][name]["sha256"]:
            found.append(f"{name} is not what its index says")
        if digests[0] != digests[1]:
            found += _tensors(paths[0] / name, paths[1] / name, more_saves and name == MODEL)
    found += _records(run, straight, more_saves)
    if not (run / "summary.json").exists():
        found.append("no summary.json")
    if (run / "stopped").exists():
        found.append("stopped was not removed")
    return found


def _tensors(ours: Path, theirs: Path, averaged: bool) -> list[str]:
    a, b = load_file(ours), load_file(theirs)
    found = []
    for name in a.keys() | b.keys():
        if name not in a or name not in b:
            found.append(f"{ours.name}: {name} is in one of two")
        elif averaged and "running" in name and torch.allclose(a[name], b[name], rtol=_CLOSE, atol=_CLOSE):
            continue
        elif not torch.equal(a[name], b[name]):
            largest = (a[name].double() - b[name].double()).abs().max() if a[name].shape == b[name].shape else "shape"
            found.append(f"{ours.name}: {name} differs by {largest}")
    if not found and not averaged:
        found.append(f"{ours.name}: equal tensors, other bytes")
    return found


def _records(run: Path, straight: Path, averaged: bool) -> list[str]:
    a, b = ([timeless(r) for r in read_metrics(folder)] for folder in (run, straight))
    if len(a) != len(b):
        return [f"metrics.jsonl has {len(a)} lines, not {len(b)}"]
    return [f"metrics.jsonl: {_short(x, y)}" for x, y in zip(a, b, strict=True) if not _agree(x, y, averaged)][:5]


def _agree(ours: dict[str, Any], theirs: dict[str, Any], averaged: bool) -> bool:
    if averaged and ours["kind"] == theirs["kind"] == "eval":
        near = abs(ours["loss"] - theirs["loss"]) <= _CLOSE * abs(theirs["loss"])
        return near and {**ours, "loss": 0} == {**theirs, "loss": 0}
    return ours == theirs


def _short(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    keys = [k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)]
    pairs = {k: [ours.get(k), theirs.get(k)] for k in sorted(keys)}
    return f"step {ours.get('step')} {ours.get('kind')}: {json.dumps(pairs)[:200]}"
