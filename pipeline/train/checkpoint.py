"""A checkpoint as it lies on disk: a folder of files, with an index that holds their digests."""

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from pipeline.train.index import FORMAT, INDEX, is_sealed
from shards.errors import InputError

MODEL = "model.safetensors"
EMA = "ema.safetensors"
OPTIMIZER = "optimizer.safetensors"

_NAME = re.compile(r"step-(\d{9})")


def complete(folder: Path) -> list[Path]:
    """Checkpoints in a run's `checkpoints` folder that were complete when they got their name, oldest first."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def newest(folder: Path) -> Path | None:
    """The newest undamaged checkpoint in a run's `checkpoints` folder; each damaged one is named on the way.

    Raises:
        InputError: there are checkpoints, and all are damaged.
    """
    existing = complete(folder)
    for path in reversed(existing):
        reason = damage(path)
        if reason is None:
            return path
        warn_of(path, reason)
    if existing:
        raise all_damaged(folder)
    return None


def read_index(path: Path) -> dict[str, Any]:
    """The index of a checkpoint: step, homes of its ranks, what it agrees with, files."""
    index: dict[str, Any] = json.loads((path / INDEX).read_text(encoding="utf-8"))
    return index


def damage(path: Path, share: int = 0, of: int = 1) -> str | None:
    """What is wrong with a checkpoint, or None; of its files, every `of`-th is read."""
    try:
        index = read_index(path)
        if index.get("format") != FORMAT:
            return f"it has format {index.get('format')}, this version reads {FORMAT}"
        if not is_sealed((path / INDEX).read_bytes()):
            return f"{INDEX} is not what was written"
        files = sorted(index["files"].items())
        for name, entry in files:
            if (path / name).stat().st_size != entry["bytes"]:
                return f"{name} is not what was written"
        for name, entry in files[share::of]:
            with (path / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                    return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # whatever bytes may make of JSON
        return f"{INDEX} cannot be read ({error})"
    return None


def evaluated(path: Path) -> Path:
    """File of the network that evaluations see: the EMA of the weights, where the run has one (`optim.ema`)."""
    return path / (EMA if EMA in read_index(path)["files"] else MODEL)


def own_name(rank: int) -> str:
    """File of a rank's per-sample state."""
    return f"rank-{rank:05d}.safetensors"


def selected(path: Path) -> float:
    """The figure that the best checkpoint has most of; nothing is less than a missing one."""
    try:
        found = read_index(path).get("selected")
    except (OSError, ValueError, AttributeError):
        found = None
    return float("-inf") if found is None else float(found)


def warn_of(path: Path, reason: str) -> None:
    """Say that a checkpoint is damaged."""
    print(f"warning: skipping the damaged checkpoint {path}: {reason}", file=sys.stderr)


def all_damaged(folder: Path) -> InputError:
    """What to raise where no checkpoint of a run can be used."""
    return InputError(f"every checkpoint in {folder} is damaged: restore one, or give another --run.name")
