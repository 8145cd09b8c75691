"""When a run saves, and what its checkpoints say of it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.data.plan import Plan
from pipeline.train.checkpoint import read_index
from pipeline.train.checkpoints import Checkpoints
from pipeline.train.state import State
from shards.url import public


class Saves:
    """Of one attempt.

    Args:
        config: the run.
        checkpoints: where they go.
        plan: its batches.
        identity: what a resume must agree with.
        leads: whether this is rank 0, whose clock counts.
        last: step at which this attempt ends.
        origin: the checkpoint that this attempt goes on from, if any.
        clock: seconds from any moment on.
    """

    def __init__(
        self,
        config: Config,
        checkpoints: Checkpoints,
        plan: Plan,
        identity: dict[str, Any],
        leads: bool,
        last: int,
        origin: Path | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._checkpoints, self._plan, self._identity = config, checkpoints, plan, identity
        self._leads, self._last = leads, last
        known = {} if origin is None else read_index(origin)
        self._seconds, self._known = known.get("save_seconds"), known.get("selected")
        self._elsewhere = origin is not None and origin.parent.resolve() != checkpoints.folder.resolve()
        self._clock, self._at, self._saved = clock, clock(), -1
        self._selected: tuple[int, float | None] = -1, None

    @property
    def seconds(self) -> float | None:
        """What the last complete save took; None before any."""
        return self._checkpoints.seconds or self._seconds

    def ask(self) -> int:
        """Whether rank 0's clock asks for a save: the last one of whatever kind is so long ago. To be agreed on."""
        minutes = self._config.checkpoint.every_minutes
        return int(minutes is not None and self._leads and self._clock() - self._at >= 60 * minutes)

    def due(self, done: int, evaluated: bool, asked: int) -> bool:
        """Whether one is due after so many steps, the same on all ranks.

        Args:
            done: steps.
            evaluated: whether they end with an evaluation.
            asked: what was agreed on of `ask` after the step before. A save that followed at once has answered it.
        """
        every = self._config.checkpoint.every_steps or self._plan.steps_per_epoch
        chooses = evaluated and self._config.eval.select_by is not None
        return done % every == 0 or done == self._last or chooses or (asked > 0 and self._saved < done - 1)

    def note(self, done: int, name: str, accuracy: float) -> None:
        """Take note of an evaluation: that on `eval.select_by` chooses the best checkpoint."""
        if name == self._config.eval.select_by:
            self._selected = done, accuracy

    def lacking(self, start: int) -> bool:
        """Whether the run lacks a checkpoint of the step that this attempt starts at, or that lacks its evaluation.

        The evaluation may have been cut off by a stop; the checkpoint may lie elsewhere, and what goes on from this run
        must find it.
        """
        return self._elsewhere or (self._selected[0] == start and self._selected[1] != self._known)

    def save(self, state: State, done: int) -> None:
        """Begin a checkpoint; all ranks together."""
        about = {
            "samples": done * self._plan.global_batch,
            "config": public(self._config.to_tables()),
            "identity": self._identity,
            "selected": self._selected[1] if self._selected[0] == done else None,
            "save_seconds": self.seconds,
        }
        state.save(self._checkpoints, done, about)
        self._at, self._saved = self._clock(), done
