"""mixup: every sample of a micro-batch becomes a mean of itself and another one of it (Zhang et al. 2018)."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline.method.outputs import HeadLoss, Outputs

_STREAM = 3  # keeps these random numbers apart from those of the plan and of the views


@dataclass(frozen=True)
class Mix:
    """Which samples are mixed, and how: `share` of each sample itself, the rest of its `partner`, int64 [B]."""

    share: float
    partner: torch.Tensor

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mixed values [B, ...] of such values."""
        return self.share * values + (1.0 - self.share) * self.others(values)

    def others(self, values: torch.Tensor) -> torch.Tensor:
        """Return each sample's partner's value."""
        return values.index_select(0, self.partner)


def draw(valid: torch.Tensor, alpha: float, place: tuple[int, int, int], network: int) -> Mix:
    """Draw how a micro-batch is mixed: one share, and a random order in which partners are taken.

    Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018 (arXiv 1710.09412): of
    Beta(alpha, alpha), and of this and its rest the larger, as in MixMatch and the code of ELR+: no sample is mostly
    another. Where the partner is not valid a sample stays as it is: nothing of what did not decode gets into others.
    The draw is made on the host, and waits for no device.

    Args:
        valid: bool [B], on the device.
        alpha: above 0.
        place: (seed, step, lane) of the micro-batch, so that the number of processes does not matter.
        network: from 0: each mixes anew.
    """
    generator = np.random.default_rng([_STREAM, *place, network])
    share = float(generator.beta(alpha, alpha))
    order = torch.from_numpy(generator.permutation(len(valid))).to(valid.device, non_blocking=True)
    partner = torch.where(valid.index_select(0, order), order, torch.arange(len(valid), device=valid.device))
    return Mix(max(share, 1.0 - share), partner)


def mixed_heads(aux: HeadLoss, outputs: Outputs, mix: Mix, confidence: torch.Tensor | None) -> torch.Tensor:
    """Return the losses [B] of the heads for mixed images: those with the own and with the partner's label, mixed.

    Args:
        aux: the loss of the heads.
        outputs: of the mixed images, with the samples' own labels.
        mix: how they were mixed.
        confidence: [B] in each sample's own label, where the loss goes by it.
    """
    others = None if confidence is None else mix.others(confidence)
    own = aux(replace(outputs, confidence=confidence))
    its = aux(replace(outputs, target=mix.others(outputs.target), confidence=others))
    return mix.share * own + (1.0 - mix.share) * its
