"""What a step of two networks minimises that choose each other's samples."""

from collections.abc import Sequence

import torch

from pipeline.method.objective import Losses, Objective
from pipeline.method.pairs import Choice, Seen
from pipeline.method.twonetworks import TwoNetworks
from pipeline.model.pair import separate


class PairObjective(TwoNetworks):
    """Each network's own `Objective`, in which the base loss counts the chosen samples alone; both are added.

    The mean over the chosen samples stands for all valid ones: as everywhere, what is not valid adds nothing and the
    sum is divided by the nominal size B, so a micro-batch whose samples all decode gives the papers' mean over the
    chosen. Where nothing is chosen the base loss is 0. The losses of the heads, and what is kept per sample, see every
    valid sample. Nothing here waits for the device.

    Args:
        first: of network 1, without penalty.
        second: of network 2, which shares no per-sample state with the first.
        choice: who learns from what.
    """

    def __init__(self, first: Objective, second: Objective, choice: Choice) -> None:
        super().__init__(first, second)
        self._choice = choice

    def __call__(
        self,
        main: torch.Tensor,
        aux: Sequence[torch.Tensor],
        target: torch.Tensor,
        positions: torch.Tensor,
        valid: torch.Tensor,
        epoch: float,
    ) -> Losses:
        """Return the losses of one micro-batch; see `Objective`, but for the logits: [2, B, K], main and auxiliary.

        Parts are summed over the networks, but for "confidence", their mean. Besides: "selected", samples that a base
        loss counts (the mean of both networks' numbers), and "agreement", those where both main heads predict the same.
        `right` and shares are network 1's, whose confidence in a label is 1 where it learns from it, else 0.
        """
        both = separate(main, aux)
        outputs = [
            each.outputs(logits, heads, target, positions, valid, epoch)
            for each, (logits, heads) in zip(self.objectives, both, strict=True)
        ]
        losses = [each.base(own) for each, own in zip(self.objectives, outputs, strict=True)]
        differ = outputs[0].main.argmax(dim=1) != outputs[1].main.argmax(dim=1)
        kept = self._choice(Seen([loss.detach() for loss in losses], differ, valid, epoch))
        found = [
            each.add_up(own, self._of_all(loss, chosen, valid), trusted=chosen.float())
            for each, own, loss, chosen in zip(self.objectives, outputs, losses, kept, strict=True)
        ]
        parts = {name: found[0].parts[name] + found[1].parts[name] for name in found[0].parts}
        if "confidence" in parts:
            parts["confidence"] = parts["confidence"] / 2
        parts["selected"] = (kept[0].sum() + kept[1].sum()) / 2
        parts["agreement"] = (valid & ~differ).sum()
        return Losses(found[0].total + found[1].total, found[0].right, parts, found[0].shares)

    def _of_all(self, losses: torch.Tensor, chosen: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """The mean of the chosen losses [B], times the number of valid samples."""
        count = valid.sum().float()
        taken = torch.maximum(chosen.sum().float(), self._choice.least * count).clamp(
            min=0.01
        )  # 0 / 0.01, where none is
        return torch.where(chosen, losses, 0.0).sum() * (count / taken)
