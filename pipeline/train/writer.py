"""Writes a checkpoint beside training: a folder of files, a mark of each rank that is done, an index, one rename."""

import json
import math
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from pipeline.train import packed
from pipeline.train.dist import World
from pipeline.train.index import INDEX, sealed
from shards.localfolder import LocalFolder, replace

_POLL = 0.05  # seconds between looks for the other ranks' marks

Files = dict[str, tuple[dict[str, torch.Tensor], Any]]  # name -> tensors on the host, tree


class Writer:
    """One checkpoint at a time, in a thread that calls no collective: ranks meet through files alone.

    Args:
        folder: the run's `checkpoints` folder, on a file system that all ranks share.
        world: this process.
        attempt: a name of this attempt at the run, the same on all ranks: what another one left is not ours.
        patience: seconds that rank 0 waits for the others' files.
        published: called in the thread, on rank 0, with each checkpoint that is complete.
        failed: called there with the reason why one is not.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        attempt: str,
        patience: float,
        published: Callable[[Path], None],
        failed: Callable[[int, str], None],
    ) -> None:
        self._folder, self._world, self._attempt, self._patience = folder, world, attempt, patience
        self._published, self._failed = published, failed
        self._thread: threading.Thread | None = None
        self.written = 0  # bytes so far, of all checkpoints
        self.seconds: float | None = None  # that the last one took, from its beginning to its name

    def begin(
        self, step: int, files: Files, ready: Callable[[], None], home: tuple[int, int], about: dict[str, Any]
    ) -> None:
        """Begin to write; the last one must be over (`wait`).

        Args:
            step: finished optimizer steps.
            files: this rank's; not to be changed until `wait` returns.
            ready: waits until their content is there.
            home: what this rank's samples are, for whoever reads it at another world size.
            about: for the index; rank 0's counts.
        """
        assert self._thread is None, "wait() comes first"
        self._thread = threading.Thread(
            target=self._write, args=(step, files, ready, home, about), name="checkpoint", daemon=True
        )
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether the last one is not over."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self, moves: Callable[[], None] = lambda: None, seconds: float = math.inf) -> None:
        """Wait until this rank's part of the last checkpoint is over; on rank 0, all of it.

        Args:
            moves: called now and then while bytes are written.
            seconds: to wait at most.
        """
        until = time.monotonic() + seconds
        while self._thread is not None and time.monotonic() < until:
            written = self.written
            self._thread.join(min(1.0, max(0.0, until - time.monotonic())))
            if not self._thread.is_alive():
                self._thread = None
            elif self.written > written:
                moves()

    def sweep(self, before: float = math.inf) -> None:
        """Remove what is half written, of steps before that one; no rank may be writing those.

        A checkpoint whose place another was just taking when a kill came gets its name again.
        """
        for old in self._folder.glob(".step-*.old"):
            if int(old.name[6:15]) < before:
                final = self._folder / old.name[1:15]
                if final.exists():
                    shutil.rmtree(old, ignore_errors=True)
                else:
                    old.rename(final)
        for old in self._folder.glob(".step-*.tmp"):
            if int(old.name[6:15]) < before:
                shutil.rmtree(old, ignore_errors=True)

    def _write(
        self, step: int, files: Files, ready: Callable[[], None], home: tuple[int, int], about: dict[str, Any]
    ) -> None:
        began = time.monotonic()
        temporary = self._folder / f".step-{step:09d}.{self._attempt}.tmp"
        mark: dict[str, Any] = {"home": home}
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            ready()
            mark["files"] = {
                name: packed.write(temporary / name, *content, written=self._count) for name, content in files.items()
            }
        except Exception as error:  # whatever it is, it must not end unheard with this thread
            mark = {"error": _reason(error)}
            for name in files:  # makes room for the mark, where that was lacking
                with suppress(OSError):
                    (temporary / name).unlink(missing_ok=True)
        try:
            replace(temporary / _mark_name(self._world.rank), json.dumps(mark).encode(), temporary)
        except OSError as error:
            mark.setdefault("error", _reason(error))
        if self._world.rank == 0:
            reason = mark.get("error") or self._publish(step, temporary, about, until=began + self._patience)
            if reason:
                shutil.rmtree(temporary, ignore_errors=True)
                self._failed(step, reason)
                return
            self._published(self._folder / f"step-{step:09d}")
        self.seconds = time.monotonic() - began

    def _count(self, length: int) -> None:
        self.written += length

    def _publish(self, step: int, temporary: Path, about: dict[str, Any], until: float) -> str | None:
        """Wait for all marks, write the index, give the folder its name; why not, if not."""
        final = self._folder / f"step-{step:09d}"
        try:
            files: dict[str, Any] = {}
            homes = []
            for rank in range(self._world.size):
                mark = _mark(temporary / _mark_name(rank), until)
                if mark is None:
                    return f"rank {rank} did not finish its files within {self._patience:.0f} s"
                if "error" in mark:
                    return f"rank {rank}: {mark['error']}"
                files |= mark["files"]
                homes.append(mark["home"])
            index = sealed({"step": step, "homes": homes, **about, "files": files})
            replace(temporary / INDEX, index.encode(), temporary)
            for rank in range(self._world.size):
                (temporary / _mark_name(rank)).unlink()
            LocalFolder(temporary).sync()
            replaced = self._folder / f".{final.name}.old"
            if final.exists():  # saved again, with an evaluation that had been cut off
                final.rename(replaced)
            temporary.rename(final)
            LocalFolder(self._folder).sync()
            shutil.rmtree(replaced, ignore_errors=True)
        except Exception as error:
            return _reason(error)
        self.sweep(before=step)  # which are over on all ranks, as this one is; another may have begun the next
        return None


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint at once: what a kill leaves of it is swept later, and never taken for one.

    Raises:
        OSError: the folder cannot be changed.
    """
    aside = checkpoint.with_name(f".{checkpoint.name}.{uuid4().hex[:12]}.tmp")
    checkpoint.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def _mark(path: Path, until: float) -> dict[str, Any] | None:
    while not path.exists():
        if time.monotonic() > until:
            return None
        time.sleep(_POLL)
    mark: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return mark


def _mark_name(rank: int) -> str:
    return f".done-{rank:05d}.json"
