"""Steps that are not finite (loss, gradient, BatchNorm): found on the device, left out, recorded, at last refused."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed

from pipeline.config import Config
from pipeline.data.plan import Plan
from pipeline.record.track import METRICS, Tracker
from pipeline.train.dist import World
from shards.errors import InputError


@torch.no_grad()
def find(
    losses: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], statistics: torch.Tensor, world: World
) -> torch.Tensor:
    """Look at one step of all ranks; called by all of them together. Waits for no GPU.

    Args:
        losses: of this rank's micro-batches, 0-dim each, as many on every rank.
        gradients: what the optimizer will use.
        statistics: of BatchNorm in this step. A variance overflows long before a loss does: what is divided by an
            infinite one is 0, and loss and gradient stay finite.
        world: this process.

    Returns:
        [lanes + 2] float32 on the device, the same on every rank: 1 for each lane whose loss is not finite, then 1 if
        statistics are not, then 1 if a gradient is not.
    """
    count = len(losses)
    flags = torch.zeros(world.size * count + 2, device=world.device)
    flags[world.rank * count : (world.rank + 1) * count] = ~torch.stack(list(losses)).isfinite()
    flags[-2] = ~statistics.isfinite().all()
    # One pass over all of them, exact where a norm would overflow; it also multiplies them by its last argument.
    one = torch.ones(1, device=world.device)
    torch._amp_foreach_non_finite_check_and_unscale_(list(gradients), flags[-1:], one)
    if world.size > 1:
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return flags


class NonFiniteSteps:
    """The host's side: it hears of a step one step later, so that it never waits for the step at hand.

    Args:
        config: the run.
        plan: says which samples a step had.
    """

    def __init__(self, config: Config, plan: Plan) -> None:
        self._config, self._plan = config, plan
        self._in_a_row = 0
        self._pending: tuple[int, torch.Tensor, torch.cuda.Event | None] | None = None

    def note(self, done: int, flags: torch.Tensor, tracker: Tracker) -> None:
        """Take the flags of the step that made it `done` steps, after a look at those of the step before.

        Raises:
            InputError: see `look`.
        """
        self.look(tracker)
        host = flags.to("cpu", non_blocking=True)  # from a GPU into pinned memory, whenever it gets there
        arrived = None
        if flags.device.type == "cuda":
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending = done, host, arrived

    def look(self, tracker: Tracker) -> None:
        """Record the step noted last, if it was not finite; also before anything is recorded or saved.

        Raises:
            InputError: it was the last of `optim.max_nonfinite_steps` in a row.
        """
        if self._pending is None:
            return
        done, host, arrived = self._pending
        self._pending = None
        if arrived is not None:
            arrived.synchronize()
        flags = host.bool().tolist()
        if not any(flags):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        tracker.log("nonfinite", done, self._fields(done, flags))
        if self._in_a_row >= self._config.optim.max_nonfinite_steps:
            raise InputError(self._too_many(done))

    def _fields(self, done: int, flags: list[bool]) -> dict[str, Any]:
        *lanes, statistics, gradient = flags
        epoch, step = divmod(done - 1, self._plan.steps_per_epoch)
        return {
            "epoch": done / self._plan.steps_per_epoch,
            "in_a_row": self._in_a_row,
            "loss_lanes": [lane for lane, flag in enumerate(lanes) if flag],
            "statistics": statistics,
            "gradient": gradient,
            "ids": self._plan.batch(epoch, step).tolist(),
        }

    def _too_many(self, done: int) -> str:
        optim, count = self._config.optim, self._in_a_row
        steps = f"step {done}" if count == 1 else f"each of steps {done - count + 1} to {done}"
        remedies = [f"a lower optim.lr (now {optim.lr:g})", "a longer optim.warmup_epochs"]
        if not optim.clip:
            remedies.append("optim.clip")
        if self._config.engine.precision != "float32":
            remedies.append("engine.precision = 'float32'")
        return (
            f"loss, gradient or BatchNorm statistics are not finite in {steps} (optim.max_nonfinite_steps = {count});"
            " these steps changed nothing, their samples are in the lines of kind nonfinite in"
            f" {self._config.folder / METRICS}. Try {', '.join(remedies[:-1])} or {remedies[-1]}, in a run of its own"
            " (--run.name)"
        )

    def state_dict(self) -> int:
        """Non-finite steps in a row up to now; the same on every rank."""
        assert self._pending is None, "look first"
        return self._in_a_row

    def load_state_dict(self, state: int) -> None:
        """Go on from an earlier attempt."""
        self._in_a_row = state
