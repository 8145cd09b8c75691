"""Checkpoints that exist completely or not at all: a folder of files, their digests, one rename."""

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipeline.train import dist
from pipeline.train.dist import World
from shards.errors import InputError

INDEX = "index.json"
MODEL = "model.safetensors"
OPTIMIZER = "optimizer.pt"

_NAME = re.compile(r"step-(\d{9})")


class Checkpoints:
    """The checkpoints of one run, on a file system that all ranks share.

    Args:
        folder: the run's `checkpoints` folder.
        world: this process.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, world: World, keep: int) -> None:
        self._folder, self._world, self._keep = folder, world, keep
        self.seconds: float | None = None  # that the last save took

    def save(
        self,
        step: int,
        *,
        model: dict[str, torch.Tensor],
        optimizer: dict[str, Any],
        own: dict[str, Any],
        about: dict[str, Any],
    ) -> Path:
        """Write everything after `step` finished steps; all ranks together.

        Args:
            step: finished optimizer steps.
            model: state of the module; rank 0's is written.
            optimizer: state of the optimizer; rank 0's is written.
            own: this rank's per-sample state, tensors and plain values.
            about: what a resume must agree with, as JSON.
        """
        began = time.monotonic()
        final = self._folder / f"step-{step:09d}"
        temporary = self._folder / f".{final.name}.tmp"
        leader = self._world.rank == 0
        if leader:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        dist.barrier()
        written = [_write(temporary / _own_name(self._world.rank), lambda path: torch.save(own, path))]
        if leader:
            host = {name: tensor.detach().cpu().contiguous() for name, tensor in model.items()}
            written.append(_write(temporary / MODEL, lambda path: save_file(host, path)))
            written.append(_write(temporary / OPTIMIZER, lambda path: torch.save(optimizer, path)))
        files = {name: entry for share in dist.gather(dict(written)) for name, entry in share.items()}
        if leader:
            index = {"step": step, "world": self._world.size, **about, "files": files}
            text = json.dumps(index, indent=1)
            _write(temporary / INDEX, lambda path: path.write_text(text, encoding="utf-8"))
            _sync_folder(temporary)
            if final.exists():
                shutil.rmtree(final)
            temporary.rename(final)
            _sync_folder(self._folder)
            for old in self.paths()[: -self._keep]:
                shutil.rmtree(old)
        dist.barrier()
        self.seconds = time.monotonic() - began
        return final

    def paths(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return complete(self._folder)

    def choose(self, resume: str) -> Path | None:
        """The checkpoint to go on from: rank 0 chooses, all ranks agree.

        Args:
            resume: `none`, `auto` (the newest undamaged one; none only where there is none at all) or a path.

        Raises:
            InputError: `none` where the run has begun, a path that is no undamaged checkpoint, or all are damaged.
        """
        outcome: Path | InputError | None = None
        if self._world.rank == 0:
            try:
                outcome = _chosen(self._folder, resume)
            except InputError as error:
                outcome = error
        agreed = dist.gather(outcome)[0]
        if isinstance(agreed, InputError):
            raise agreed
        return agreed

    def rewind(self, step: int) -> None:
        """Drop the checkpoints after `step`, where a run goes on from an older one; called by rank 0."""
        for path in self.paths():
            if int(path.name[5:]) > step:
                shutil.rmtree(path)

    def load(self, path: Path, device: torch.device) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
        """Model, optimizer and this rank's own state; nothing in the files is run as code.

        Raises:
            InputError: it was saved by another number of processes.
        """
        saved_by = read_index(path)["world"]
        if saved_by != self._world.size:
            raise InputError(f"{path} was saved by {saved_by} processes, not {self._world.size}: start {saved_by}")
        model = load_file(path / MODEL, device=str(device))
        optimizer = torch.load(path / OPTIMIZER, map_location=device, weights_only=True)
        own = torch.load(path / _own_name(self._world.rank), map_location="cpu", weights_only=True)
        return model, optimizer, own


def complete(folder: Path) -> list[Path]:
    """Complete checkpoints in a run's `checkpoints` folder, oldest first."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and (path / INDEX).exists()]
    return sorted(found)


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
        print(f"warning: skipping the damaged checkpoint {path}: {reason}", file=sys.stderr)
    if existing:
        raise InputError(f"every checkpoint in {folder} is damaged: restore one, or give another --run.name")
    return None


def read_index(path: Path) -> dict[str, Any]:
    """The index of a checkpoint: step, world, what it agrees with, files."""
    index: dict[str, Any] = json.loads((path / INDEX).read_text(encoding="utf-8"))
    return index


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        files = read_index(path)["files"]
        for name, entry in files.items():
            if _entry(path / name) != entry:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # whatever bytes may make of JSON
        return f"{INDEX} cannot be read ({error})"
    return None


def _chosen(folder: Path, resume: str) -> Path | None:
    if resume == "none":
        existing = complete(folder)
        if existing:
            raise InputError(
                f"{folder.parent} already holds a run at step {int(existing[-1].name[5:])}: go on with --resume auto,"
                " or give another --run.name"
            )
        return None
    if resume != "auto":
        path = Path(resume)
        reason = damage(path)
        if reason:
            raise InputError(f"--resume {resume} is neither 'auto' nor 'none' nor a whole checkpoint: {reason}")
        return path
    return newest(folder)


def _own_name(rank: int) -> str:
    return f"rank-{rank:05d}.pt"


def _write(path: Path, write: Callable[[Path], object]) -> tuple[str, dict[str, Any]]:
    """Write one file durably; its name and entry in the index."""
    write(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path.name, _entry(path)


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
