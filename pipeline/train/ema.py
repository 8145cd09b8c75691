"""A moving average of the network's weights, kept beside training: where there is one, evaluations see it."""

import torch
import torch.distributed as dist
from torch import nn


class WeightEma:
    """After step n, from 1: average = d * average + (1 - d) * weights, with d = min(decay, (1 + n) / (10 + n)).

    In float32, like the weights, beside which it lies. The bound on d is TensorFlow's (ExponentialMovingAverage with
    num_updates): without it a network would be judged by its random beginning for several times 1 / (1 - decay) steps;
    with it the average spans about the last ninth of the steps so far, until that is more than 1 / (1 - decay).

    BatchNorm's running statistics take part, as in timm and in EfficientNet's own code. The live ones belong to the
    newest weights, which the averaged weights trail by that span. With the distance between weights within the span,
    the error of averaged statistics shrinks quadratically: to first order, the statistics of averaged weights are the
    average of the statistics. Exact ones would take a pass over the training set before each evaluation. All of it is
    linear, so the mean over ranks of what each holds is what one rank with all the micro-batches would hold.

    Args:
        module: a copy of the network that nobody else uses; it becomes the EMA.
        live: the network that trains, on the device and in the layout in which it will stay.
        decay: above 0, below 1.
    """

    def __init__(self, module: nn.Module, live: nn.Module, decay: float) -> None:
        self.module = module.requires_grad_(False).eval()
        self._decay, self._steps = decay, 0
        module.load_state_dict(live.state_dict())
        ours, theirs = module.state_dict(), live.state_dict()  # views: what they show moves
        moving = [name for name, tensor in ours.items() if tensor.is_floating_point()]
        self._average, self._live = [ours[name] for name in moving], [theirs[name] for name in moving]
        self._statistics = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        self._counts = [(ours[name], theirs[name]) for name in ours.keys() - set(moving)]

    @torch.no_grad()
    def move(self, skipped: torch.Tensor) -> None:
        """After each step; waits for no device.

        Args:
            skipped: 0-dim bool on the device; True: the average stays as it was.
        """
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        # _foreach_lerp_ would go tensor by tensor: its weight would have to be known here, and it is on the device.
        way = torch._foreach_sub(self._live, self._average)
        torch._foreach_mul_(way, torch.where(skipped, 0.0, 1.0 - decay))
        torch._foreach_add_(self._average, way)

    @torch.no_grad()
    def average_over_ranks(self) -> None:
        """Make all ranks hold the same statistics; between steps, before evaluating or saving. Weights are the same."""
        for ours, theirs in self._counts:
            ours.copy_(theirs)
        if not self._statistics or dist.get_world_size() == 1:
            return
        flat = torch.cat([buffer.flatten() for buffer in self._statistics])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        parts = flat.split([buffer.numel() for buffer in self._statistics])
        torch._foreach_copy_(self._statistics, [p.view_as(b) for p, b in zip(parts, self._statistics, strict=True)])

    def state_dict(self) -> dict[str, torch.Tensor]:
        """By the names of the live network."""
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor], steps: int) -> None:
        """Go on from what was averaged over `steps` steps."""
        self.module.load_state_dict(state)
        self._steps = steps
