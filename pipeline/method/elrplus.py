"""ELR+: two networks and mixup, held to what the other one's weight EMA says (Liu et al., NeurIPS 2020, appendix)."""

import math
from collections.abc import Callable, Sequence

import torch

from pipeline.data.batch import Batch
from pipeline.method.elr import EarlyLearning
from pipeline.method.mixup import Mix, draw, mixed_heads
from pipeline.method.objective import Losses, Objective
from pipeline.method.outputs import Outputs
from pipeline.method.twonetworks import TwoNetworks
from pipeline.model.pair import separate
from shards.errors import InputError

Look = Callable[[torch.Tensor], tuple[torch.Tensor, list[torch.Tensor]]]


class ElrPlus(TwoNetworks):
    """Each network learns mixed images by CE + r * lambda * log(1 - <q, p>), all of which are added.

    Liu, Niles-Weed, Razavian, Fernandez-Granda (arXiv 2007.00151, appendix; repository shengliu66/ELR, ELR_plus). For
    each network a micro-batch is mixed anew (`mixup.draw`), each sample staying at least half of itself. CE is that
    with the mixed labels, and q the mix of the samples' targets t, which move on, before they are read, with the answer
    of the OTHER network's weight EMA to the images before they were mixed. As there, the EMA goes by the statistics of
    the micro-batch. r = exp(-5 * (1 - epoch / E)^2), from 0.007 to 1 over the first E = `ramp_epochs` epochs.

    With auxiliary heads: they see the mixed images, and their loss is mixed as CE is: share * loss(y) + (1 - share) *
    loss(its partner's y). The confidence in each label (ALASCA) is by the answer of the network's own EMA to the images
    before they were mixed, which also is what counts as right and gives evidence: training accuracies are the EMA's.

    Differs from that code: the EMA's decay rises as `train.ema.WeightEma` says and not along r's curve over 40,000
    steps; both networks learn in one step and in the same order of samples; r rises by epochs, there by steps; and with
    100 classes they put labels * q, divided by its sum, in the place of the mixed labels.

    Args:
        first, second: the networks' other losses, their state and evidence; base losses are not used.
        targets: of each network, t: a bank of K columns, among those of its objective.
        look: forward of both weight EMAs without gradient, by the statistics of the micro-batch.
        seed: of the run.
        mixup_alpha: of the share's Beta distribution; 1 in their code (1.5 in a version of it for WebVision).
        ramp_epochs: E; 0 for CIFAR-10, where r is 1. For CIFAR-100 they take 40,000 steps of 128 samples: 102 epochs.

    Raises:
        InputError: a value out of range.
    """

    def __init__(
        self,
        first: Objective,
        second: Objective,
        targets: Sequence[EarlyLearning],
        look: Look,
        seed: int,
        mixup_alpha: float = 1.0,
        ramp_epochs: float = 0.0,
    ) -> None:
        super().__init__(first, second)
        if not mixup_alpha > 0.0:
            raise InputError(f"mixup_alpha = {mixup_alpha} in [method.elr_plus]: must be above 0 (default 1.0)")
        if not ramp_epochs >= 0.0:
            raise InputError(f"ramp_epochs = {ramp_epochs} in [method.elr_plus]: must be 0 or more (default 0)")
        self._elr, self._look, self._seed, self._alpha, self._ramp = targets, look, seed, mixup_alpha, ramp_epochs
        self._mixes: list[Mix] = []
        self._answers: list[tuple[torch.Tensor, list[torch.Tensor]]] = []

    def inputs(self, batch: Batch, step: int, lane: int) -> torch.Tensor:
        """Return each network's mixed images, float32 [2, B, H, W, 3], after the EMAs have seen them unmixed."""
        self._answers = separate(*self._look(batch.images))
        place = (self._seed, step, lane)
        self._mixes = [draw(batch.valid, self._alpha, place, network) for network in range(2)]
        images = batch.images.float()
        return torch.stack([mix.of(images) for mix in self._mixes])

    def __call__(
        self,
        main: torch.Tensor,
        aux: Sequence[torch.Tensor],
        target: torch.Tensor,
        positions: torch.Tensor,
        valid: torch.Tensor,
        epoch: float,
    ) -> Losses:
        """Return the losses of one micro-batch, of which `inputs` came before; logits are [2, B, K].

        Parts are summed over the networks, but for "confidence", their mean; `right` and shares are network 1's.
        """
        students, teachers, mixes = separate(main, aux), self._answers, self._mixes
        self._answers, self._mixes = [], []
        assert teachers, "`inputs` comes first"
        found, factor = [], ramp(epoch, self._ramp)
        for number, objective in enumerate(self.objectives):
            mix = mixes[number]
            unmixed = Outputs.of(*teachers[number], target, positions, valid, epoch)
            mixed = objective.outputs(*students[number], target, positions, valid, epoch)
            other = Outputs.of(teachers[1 - number][0], [], target, positions, valid, epoch)
            base = self._elr[number].mixed(mixed, self._elr[number].move(other, clamped=False), mix, factor)
            confidence = None if objective.trust is None else objective.trust(unmixed)
            heads = None if objective.aux is None else mixed_heads(objective.aux, mixed, mix, confidence)
            found.append(objective.add_up(unmixed, mixed.sum(base), heads))
        parts = {name: found[0].parts[name] + found[1].parts[name] for name in found[0].parts}
        if "confidence" in parts:
            parts["confidence"] = parts["confidence"] / 2
        return Losses(found[0].total + found[1].total, found[0].right, parts, found[0].shares)


def ramp(epoch: float, epochs: float) -> float:
    """Return exp(-5 * (1 - epoch / epochs)^2), which is 1 from `epochs` on (Laine and Aila 2017, arXiv 1610.02242)."""
    return math.exp(-5.0 * (1.0 - epoch / epochs) ** 2) if epoch < epochs else 1.0
