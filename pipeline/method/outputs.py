"""What losses are made from: a network's logits for one micro-batch, and which samples these are of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import torch


@dataclass(frozen=True)
class Outputs:
    """Logits of one micro-batch. Where a sample is not valid, its logits and its target are 0.

    `main` is [B, K]; `aux` has [B, K] of each auxiliary head, the shallowest first. `target` and `positions` (places in
    the sorted active ids) are int64 [B], `valid` bool [B], `epoch` the number of epochs completed. `confidence` [B], in
    each label, is given where it was found by other logits than these, those of images before they were mixed.
    """

    main: torch.Tensor
    aux: tuple[torch.Tensor, ...]
    target: torch.Tensor
    positions: torch.Tensor
    valid: torch.Tensor
    epoch: float
    confidence: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        main: torch.Tensor,
        aux: Sequence[torch.Tensor],
        target: torch.Tensor,
        positions: torch.Tensor,
        valid: torch.Tensor,
        epoch: float,
    ) -> Self:
        """Return these outputs without what is not valid, be it NaN.

        Masking the losses alone would keep NaN out of the values, but not out of the gradients (0 * NaN).
        """
        kept = valid.unsqueeze(1)
        heads = tuple(torch.where(kept, logits, 0.0) for logits in aux)
        return cls(torch.where(kept, main, 0.0), heads, torch.where(valid, target, 0), positions, valid, epoch)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum, 0-dim, of the valid samples' values [B]."""
        return torch.where(self.valid, values, 0.0).sum()


class Share(NamedTuple):
    """A part of something, 0-dim sums of both: what they are of all micro-batches and ranks is divided at the end."""

    part: torch.Tensor
    whole: torch.Tensor


# The loss of the main head, [B] float32. What is not valid may have any finite value.
BaseLoss = Callable[[Outputs], torch.Tensor]

# How far the method trusts each given label: [B] from 0 to 1, without gradient. Several losses may ask for it.
Trusted = Callable[[Outputs], torch.Tensor]


class HeadLoss(Protocol):
    """What trains the auxiliary heads; its losses count `aux_weight` times, on each head."""

    aux_weight: float

    def __call__(self, outputs: Outputs) -> torch.Tensor:
        """Return the losses, [B] float32, unweighted and summed over at least one head, otherwise as a BaseLoss."""
        ...
