"""Running statistics of BatchNorm that do not depend on how a step is cut into micro-batches or ranks."""

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
        self._true = [buffer.clone() for buffer in self._buffers]
        self._sums = [torch.zeros_like(buffer) for buffer in self._buffers]
        self._micro_batches = 0

    @torch.no_grad()
    def collect(self) -> None:
        """After the forward of one micro-batch."""
        self._micro_batches += 1
        if self._buffers:
            torch._foreach_add_(self._sums, self._buffers)

    @torch.no_grad()
    def finish_step(self) -> None:
        """After the last micro-batch of a step."""
        assert self._micro_batches > 0
        if self._buffers:
            torch._foreach_div_(self._sums, float(self._micro_batches))
            torch._foreach_lerp_(self._true, self._sums, self._momentum)
            torch._foreach_copy_(self._buffers, self._true)
            torch._foreach_zero_(self._sums)
            # Count steps, whatever the number of micro-batches in them.
            torch._foreach_sub_(self._counts, self._micro_batches - 1)
        self._micro_batches = 0

    @torch.no_grad()
    def average_over_ranks(self) -> None:
        """Make all ranks hold the mean of their running values; between steps, before evaluating or saving."""
        assert self._micro_batches == 0
        if not self._buffers or dist.get_world_size() == 1:
            return
        flat = torch.cat([buffer.flatten() for buffer in self._true])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for buffer, part in zip(self._true, flat.split([b.numel() for b in self._true]), strict=True):
            buffer.copy_(part.view_as(buffer))
        torch._foreach_copy_(self._buffers, self._true)

    @torch.no_grad()
    def reload(self) -> None:
        """After the module's buffers were loaded from elsewhere."""
        if self._buffers:
            torch._foreach_copy_(self._true, self._buffers)
