"""ELR: early-learning regularisation (Liu, Niles-Weed, Razavian, Fernandez-Granda; NeurIPS 2020; arXiv 2007.00151)."""

import torch
from torch.nn import functional as F

from pipeline.method.bank import SampleBank
from pipeline.method.mixup import Mix
from pipeline.method.outputs import Outputs
from shards.errors import InputError

_LEAST = 1e-4


class EarlyLearning:
    """Cross entropy + weight * log(1 - <t, p>), [B] in float32: what was learnt early is held on to.

    p are the main head's probabilities, clamped to [1e-4, 1 - 1e-4] as in the authors' code (outside, the second term
    has no gradient). t, without gradient, is the sample's target: a moving average of p over its own sum, from zeros,
    t = beta * t + (1 - beta) * p / sum(p), moved on before it is read.

    Args:
        bank: of K columns; holds t.
        beta: momentum. The default is that for CIFAR-10; they take 0.9 for CIFAR-100.
        weight: their lambda. The default is that for CIFAR-10; they take 7 for CIFAR-100.

    Raises:
        InputError: beta outside [0, 1), or a negative weight.
    """

    def __init__(self, bank: SampleBank, beta: float = 0.7, weight: float = 3.0) -> None:
        if not 0.0 <= beta < 1.0:
            raise InputError(f"beta = {beta} in [method.elr]: must be from 0 to below 1 (default 0.7)")
        if not weight >= 0.0:
            raise InputError(f"weight = {weight} in [method.elr]: must be 0 or more (default 3.0)")
        self._bank, self._beta, self._weight = bank, beta, weight

    def __call__(self, outputs: Outputs) -> torch.Tensor:
        """Return the losses, after one observation of each valid sample has moved its target on."""
        targets = self.move(outputs)
        log_p = F.log_softmax(outputs.main.float(), dim=1)
        return self._held_to(targets, log_p) - log_p.gather(1, outputs.target.unsqueeze(1)).squeeze(1)

    def move(self, outputs: Outputs, clamped: bool = True) -> torch.Tensor:
        """Move the targets of valid samples on by one observation, and return all of them, t [B, K].

        In the code of ELR+ they are not clamped: with 1,000 classes the floor alone is up to 9 % of their sum.
        """
        log_p = F.log_softmax(outputs.main.detach().float(), dim=1)
        seen = _clamped(log_p) if clamped else log_p.exp()
        return self._bank.update(outputs.positions, seen / seen.sum(dim=1, keepdim=True), self._beta, outputs.valid)

    def mixed(self, outputs: Outputs, targets: torch.Tensor, mix: Mix, factor: float = 1.0) -> torch.Tensor:
        """Return the losses [B] of mixed samples, each held to the mix of both samples' `targets` (ELR+).

        `factor` multiplies the weight.
        """
        log_p = F.log_softmax(outputs.main.float(), dim=1)
        labels = mix.of(F.one_hot(outputs.target, log_p.shape[1]).float())
        return factor * self._held_to(mix.of(targets), log_p) - (labels * log_p).sum(dim=1)

    def _held_to(self, targets: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
        """Return weight * log(1 - <t, p>), [B]."""
        # As t sums to 1 at most and p is at most 1 - 1e-4, so is this; but a bank in 16 bits rounds t, also upwards.
        agreement = (targets * _clamped(log_p)).sum(dim=1).clamp(max=1.0 - _LEAST)
        return self._weight * torch.log1p(-agreement)


def _clamped(log_p: torch.Tensor) -> torch.Tensor:
    return log_p.exp().clamp(_LEAST, 1.0 - _LEAST)
