"""Learning rate as a function of the step."""

import math

from pipeline.config import Optim


class Schedule:
    """Learning rate of every optimizer step.

    Warm-up rises linearly to `lr` (Goyal et al. 2017); after it `cosine` falls towards 0, which would be the step
    after the last (Loshchilov and
    Hutter 2017), `multistep` multiplies by `gamma` at each milestone, `constant` stays.
    """

    def __init__(self, optim: Optim, steps_per_epoch: int) -> None:
        self._optim = optim
        self.total_steps = optim.epochs * steps_per_epoch
        self._warmup_steps = round(optim.warmup_epochs * steps_per_epoch)
        self._milestones = [round(epoch * steps_per_epoch) for epoch in optim.milestones]

    def lr(self, step: int) -> float:
        """Learning rate of step 0 <= step < total_steps."""
        assert 0 <= step < self.total_steps, step
        optim, warmup = self._optim, self._warmup_steps
        if step < warmup:
            return optim.lr * (step + 1) / warmup
        if optim.schedule == "cosine":
            return optim.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (self.total_steps - warmup)))
        if optim.schedule == "multistep":
            return optim.lr * optim.gamma ** sum(step >= milestone for milestone in self._milestones)
        return optim.lr
