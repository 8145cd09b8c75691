"""The checkpoints of a run: which to go on from, saving them beside training, which to keep."""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors.torch import load_file

from pipeline.record.lines import say
from pipeline.train import dist, packed
from pipeline.train.checkpoint import (
    EMA,
    MODEL,
    OPTIMIZER,
    all_damaged,
    complete,
    damage,
    own_name,
    read_index,
    selected,
    warn_of,
)
from pipeline.train.dist import World
from pipeline.train.lock import Lock
from pipeline.train.snapshot import Snapshot
from pipeline.train.writer import Writer, remove
from shards.errors import InputError

_SECONDS_TO_SEE = 20.0  # a network file system shows a new file late
_SECONDS_TO_END = 30.0  # an attempt that was just killed may still be ending


class Checkpoints:
    """The checkpoints of one run, on a file system that all ranks share.

    Args:
        folder: the run's `checkpoints` folder.
        world: this process.
        keep: how many of the newest stay; the best one stays too.
        patience: seconds that one may take.
        moves: called now and then while it is waited for and bytes are written.

    Attributes:
        folder: as given.
        failures: on rank 0, a line for each one that could not be written.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        keep: int,
        patience: float = 600.0,
        moves: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self._world, self._keep = folder, world, keep
        self._patience, self._moves = patience, moves
        self._snapshot, self._writer = Snapshot(), self._new_writer("")
        self.failures: list[str] = []
        self._lock = Lock(folder.parent / "lock")

    def meet(self) -> None:
        """Make the folder and a name for this attempt, and see that all ranks find it and no other attempt has it.

        Raises:
            InputError: they do not, another attempt has it, or it cannot be made.
        """
        attempt = str(dist.gather(uuid4().hex[:12])[0])
        self._writer = self._new_writer(attempt)
        sign, reason = self.folder / f".attempt-{attempt}", None
        if self._world.rank == 0:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._lock.take(min(_SECONDS_TO_END, self._patience / 2))
                for old in self.folder.glob(".attempt-*"):  # of one that was killed right here
                    old.unlink(missing_ok=True)
                sign.touch()
                self._writer.sweep()  # an attempt may have ended within a save
            except InputError as error:
                reason = str(error)
            except OSError as error:
                reason = f"run.dir: cannot write the run to {self.folder.parent}: {error.strerror}"
        if reason := dist.gather(reason)[0]:
            raise InputError(reason)
        blind = [host for host in dist.gather(None if _appears(sign) else socket.gethostname()) if host]
        if self._world.rank == 0:
            sign.unlink(missing_ok=True)
        if blind:
            raise InputError(
                f"run.dir: {', '.join(dict.fromkeys(blind))} cannot see {self.folder}, where rank 0 writes: it must"
                " lie on a file system that all nodes share"
            )

    def save(
        self,
        step: int,
        *,
        model: dict[str, torch.Tensor],
        optimizer: dict[str, Any],
        own: dict[str, Any],
        home: tuple[int, int],
        about: dict[str, Any],
        ema: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Copy everything after `step` finished steps, and write it while training goes on; all ranks together.

        Waits for the last one, and for the copy. A disk that is full or broken ends no run: it is said, and counted.

        Args:
            step: finished optimizer steps.
            model: state of the module; rank 0's is written.
            optimizer: state of the optimizer; rank 0's is written.
            own: this rank's per-sample state, tensors and plain values.
            home: positions of this rank's samples, half-open.
            about: what a resume must agree with or know, as JSON; `selected` (None or a number) is the figure that the
                best one has most of.
            ema: of the module, if there is one; rank 0's is written.
        """
        self._writer.wait(self._moves)
        states = {own_name(self._world.rank): own}
        if self._world.rank == 0:
            states |= {MODEL: model, OPTIMIZER: optimizer} | ({} if ema is None else {EMA: ema})
        flat = {name: packed.flatten(state) for name, state in states.items()}
        named = {f"{name}:{part}": tensor for name, (found, _) in flat.items() for part, tensor in found.items()}
        copies = self._snapshot.take(named)
        files = {
            name: ({part: copies[f"{name}:{part}"] for part in found}, None if name in (MODEL, EMA) else tree)
            for name, (found, tree) in flat.items()
        }
        self._writer.begin(step, files, self._snapshot.wait, home, about)

    def finish(self) -> None:
        """Wait until the last checkpoint is complete on all ranks."""
        self._writer.wait(self._moves)
        dist.barrier()
        if self._world.rank == 0:  # of a save that failed on one rank before another had begun
            self._writer.sweep()

    @property
    def writing(self) -> bool:
        """Whether this rank still writes."""
        return self._writer.busy

    @property
    def seconds(self) -> float | None:
        """What the last one took, from the copy to its name; None before."""
        return self._writer.seconds

    def newest_step(self) -> int:
        """Steps that the newest complete checkpoint holds; 0 without one."""
        existing = self.paths()
        return int(existing[-1].name[5:]) if existing else 0

    def paths(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return complete(self.folder)

    def choose(self, resume: str) -> Path | None:
        """The checkpoint to go on from: rank 0 lists them, all ranks verify a share of the files each.

        Args:
            resume: `none`, `auto` (the newest undamaged one; none only where there is none at all) or a path.

        Raises:
            InputError: `none` where the run has begun, a path that is no undamaged checkpoint, or all are damaged.
        """
        outcome: list[Path] | InputError = []
        if self._world.rank == 0:
            try:
                outcome = _candidates(self.folder, resume)
            except InputError as error:
                outcome = error
        agreed = dist.gather(outcome)[0]
        if isinstance(agreed, InputError):
            raise agreed
        for path in agreed:
            reasons = dist.gather(damage(path, self._world.rank, self._world.size))
            reason = next((found for found in reasons if found), None)
            if reason is None:
                return Path(path)
            if resume != "auto":
                raise InputError(f"--resume {resume} is neither 'auto' nor 'none' nor a whole checkpoint: {reason}")
            if self._world.rank == 0:
                warn_of(path, reason)
        if agreed:
            raise all_damaged(self.folder)
        return None

    def rewind(self, step: int) -> None:
        """Drop the checkpoints after `step`, where a run goes on from an older one; called by rank 0."""
        for path in self.paths():
            if int(path.name[5:]) > step:
                remove(path)

    def load(
        self, path: Path, device: torch.device, home: tuple[int, int]
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any], Iterator[dict[str, Any]]]:
        """Model, optimizer, and the own states of all ranks whose samples are now this rank's; nothing runs as code.

        The last are read as they are used: where there were other ranks, only the rows that are taken.

        Args:
            path: of the checkpoint.
            device: for the model.
            home: positions of this rank's samples, half-open.
        """
        model = load_file(path / MODEL, device=str(device))
        optimizer = packed.read(path / OPTIMIZER, copy=True)
        homes = [tuple(there) for there in read_index(path)["homes"]]
        ranks = [rank for rank, (start, stop) in enumerate(homes) if start < home[1] and home[0] < stop]
        assert min(homes)[0] <= home[0] and home[1] <= max(homes)[1], (homes, home)
        return model, optimizer, (packed.read(path / own_name(rank)) for rank in ranks)

    def close(self, seconds: float) -> None:
        """Let what is being written be finished, for so long; a run that fails leaves after it."""
        self._writer.wait(seconds=seconds)
        self._lock.release()

    def _new_writer(self, attempt: str) -> Writer:
        return Writer(self.folder, self._world, attempt, self._patience, self._prune, self._failed)

    def _prune(self, _: Path) -> None:
        existing = self.paths()
        best = max(existing, key=selected)
        for old in existing[: -self._keep]:
            if old != best or selected(old) == float("-inf"):
                try:
                    remove(old)
                except OSError as error:
                    say(f"alasca: WARNING: {old} cannot be removed: {error.strerror}")

    def _failed(self, step: int, reason: str) -> None:
        existing = self.paths()
        kept = f"the last good one is {existing[-1].name}" if existing else "there is none yet"
        self.failures.append(f"the checkpoint of step {step} could not be written ({reason})")
        say(f"alasca: WARNING: {self.failures[-1]}; training goes on; {kept}")


def _candidates(folder: Path, resume: str) -> list[Path]:
    """Where to look, the best first."""
    existing = complete(folder)
    if resume == "none":
        if existing:
            raise InputError(
                f"{folder.parent} already holds a run at step {int(existing[-1].name[5:])}: go on with --resume auto,"
                " or give another --run.name"
            )
        return []
    return existing[::-1] if resume == "auto" else [Path(resume)]


def _appears(path: Path) -> bool:
    until = time.monotonic() + _SECONDS_TO_SEE
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
