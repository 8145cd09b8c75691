"""When a run saves, and what its checkpoints say of it."""

import time
from typing import Any

from pipeline.config import Config
from pipeline.data.plan import Plan
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
        seconds: that the last save of an earlier attempt took, if known.
    """

    def __init__(
        self,
        config: Config,
        checkpoints: Checkpoints,
        plan: Plan,
        identity: dict[str, Any],
        leads: bool,
        last: int,
        seconds: float | None,
    ) -> None:
        self._config, self._checkpoints, self._plan, self._identity = config, checkpoints, plan, identity
        self._leads, self._last, self._seconds = leads, last, seconds
        self._at = time.monotonic()
        self._selected: tuple[int, float | None] = -1, None

    @property
    def seconds(self) -> float | None:
        """What the last complete save took; None before any."""
        return self._checkpoints.seconds or self._seconds

    def ask(self) -> int:
        """Whether rank 0's clock asks for a save; once. To be agreed on."""
        minutes = self._config.checkpoint.every_minutes
        if minutes is None or not self._leads or time.monotonic() - self._at < 60 * minutes:
            return 0
        self._at = time.monotonic()
        return 1

    def due(self, done: int, evaluated: bool) -> bool:
        """Whether one is due after so many steps, whatever the clock says."""
        every = self._config.checkpoint.every_steps or self._plan.steps_per_epoch
        chooses = evaluated and self._config.eval.select_by is not None
        return done % every == 0 or done == self._last or chooses

    def note(self, done: int, name: str, accuracy: float) -> None:
        """Take note of an evaluation: that on `eval.select_by` chooses the best checkpoint."""
        if name == self._config.eval.select_by:
            self._selected = done, accuracy

    def unknown(self, done: int) -> bool:
        """Whether an evaluation was noted that came after the checkpoint of its step."""
        return self._selected[0] == done

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
        self._at = time.monotonic()
