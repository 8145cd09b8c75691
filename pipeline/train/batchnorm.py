"""Running statistics of BatchNorm that do not depend on how a step is cut into micro-batches or ranks."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class RunningStatistics:
    """One momentum update per step, with the mean over the step's micro-batches.

    During a step every layer's momentum is 1, so each forward leaves the statistics of just its micro-batch in the
    buffers, from where `collect` adds them up; `finish_step` folds their mean into the true running values and puts
    those back. Between steps the module holds the true values. The fold is linear, so the mean over ranks of what each
    rank holds is exactly what one rank with all the micro-batches would hold.

    Raises:
        AssertionError: a layer without momentum or running statistics; the backbones have none.
    """

    def __init__(self, module: nn.Module) -> None:
        layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
        momenta = {layer.momentum for layer in layers if layer.momentum is not None}
        assert len(momenta) <= 1, momenta
        self._momentum = momenta.pop() if momenta else 0.0
        self._buffers: list[torch.Tensor] = []
        self._counts: list[torch.Tensor] = []
        for layer in layers:
            assert layer.momentum is not None and layer.running_mean is not None and layer.running_var is not None
            assert layer.num_batches_tracked is not None
            self._buffers += [layer.running_mean, layer.running_var]
            self._counts.append(layer.num_batches_tracked)
            layer.momentum = 1.0
        # Each in one piece, with a view for every buffer.
        flat = [buffer.detach().flatten() for buffer in self._buffers]
        self._all_true = torch.cat(flat) if flat else torch.empty(0)
        self._all_sums = torch.zeros_like(self._all_true)
        self._true, self._sums = self._views(self._all_true), self._views(self._all_sums)
        self._micro_batches = 0

    def _views(self, whole: torch.Tensor) -> list[torch.Tensor]:
        parts = whole.split([buffer.numel() for buffer in self._buffers])
        return [part.view_as(buffer) for part, buffer in zip(parts, self._buffers, strict=True)]

    @torch.no_grad()
    def collect(self) -> None:
        """After the forward of one micro-batch."""
        self._micro_batches += 1
        if self._buffers:
            torch._foreach_add_(self._sums, self._buffers)

    @property
    def sums(self) -> torch.Tensor:
        """Over the micro-batches of the step at hand: every layer's mean and variance, in one piece."""
        return self._all_sums

    @torch.no_grad()
    def finish_step(self, skipped: torch.Tensor) -> None:
        """After the last micro-batch of a step.

        Args:
            skipped: 0-dim bool on the device; True: the running values and their count stay as they were.
        """
        assert self._micro_batches > 0
        if self._buffers:
            moved = self._all_true.lerp(self._all_sums / self._micro_batches, self._momentum)
            self._all_true.copy_(torch.where(skipped, self._all_true, moved))
            torch._foreach_copy_(self._buffers, self._true)
            self._all_sums.zero_()
            # Count steps, whatever the number of micro-batches in them.
            torch._foreach_add_(self._counts, torch.where(skipped, -self._micro_batches, 1 - self._micro_batches))
        self._micro_batches = 0

    @torch.no_grad()
    def average_over_ranks(self) -> None:
        """Make all ranks hold the mean of their running values; between steps, before evaluating or saving."""
        assert self._micro_batches == 0
        if not self._buffers or dist.get_world_size() == 1:
            return
        dist.all_reduce(self._all_true)
        self._all_true /= dist.get_world_size()
        torch._foreach_copy_(self._buffers, self._true)

    @torch.no_grad()
    def reload(self) -> None:
        """After the module's buffers were loaded from elsewhere."""
        if self._buffers:
            torch._foreach_copy_(self._true, self._buffers)


@contextmanager
def unrecorded(module: nn.Module) -> Iterator[None]:
    """Within, BatchNorm goes by the statistics of the batch at hand, and no forward moves the running ones.

    Running statistics are those of one rank until the next evaluation: what is learned may not depend on them.
    """
    training, layers = module.training, [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    for layer in layers:
        layer.track_running_stats = False
    module.train()
    try:
        yield
    finally:
        module.train(training)
        for layer in layers:
            layer.track_running_stats = True
