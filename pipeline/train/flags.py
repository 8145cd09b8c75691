"""Small numbers on which the ranks agree while they train, without waiting for a device or for each other's data."""

from datetime import timedelta

import torch
import torch.distributed

from pipeline.train.dist import World


class Flags:
    """Of each named number, the largest that any rank posted. Posted after one step, read after the next.

    All ranks call every method, in the same order. The reduction goes over gloo beside the gradients, so by the time it
    is read it is done: even a slow rank posted before it began its last step.

    Args:
        names: of the numbers.
        world: this process; one alone agrees with itself.
        timeout_s: seconds after which a reduction that hangs raises.
    """

    def __init__(self, *names: str, world: World, timeout_s: float) -> None:
        self._names = names
        self._group: torch.distributed.ProcessGroup | None = None
        if world.size > 1:
            group = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
            assert isinstance(group, torch.distributed.ProcessGroup), "every rank is a member"
            self._group = group
        self._posted: torch.Tensor | None = None
        self._work: torch.distributed.Work | None = None

    def post(self, **values: int) -> None:
        """Begin to agree on these numbers (0 for those not given); what was posted before must have been read."""
        assert self._posted is None, "read() comes first"
        assert values.keys() <= set(self._names), values
        self._posted = torch.tensor([values.get(name, 0) for name in self._names])
        if self._group is not None:
            maximum = torch.distributed.ReduceOp.MAX
            self._work = torch.distributed.all_reduce(self._posted, maximum, self._group, async_op=True)

    def read(self) -> dict[str, int]:
        """What was posted last, agreed on; zeros where nothing was."""
        if self._work is not None:
            self._work.wait()
        agreed = [0] * len(self._names) if self._posted is None else self._posted.tolist()
        self._posted = self._work = None
        return dict(zip(self._names, agreed, strict=True))

    def agree(self, **values: int) -> dict[str, int]:
        """Agree on these numbers and on those posted before, here and now."""
        before = self.read()
        self.post(**values)
        return {name: max(before[name], value) for name, value in self.read().items()}
