"""DivideMix: two networks, each of which learns without the labels that the other one takes for wrong."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.batch import Batch
from pipeline.method.losses import cross_entropy
from pipeline.method.mixmatch import (
    guessed,
    labelled_loss,
    mean_probabilities,
    negative_entropy,
    prior_loss,
    ramp,
    refined,
    unlabelled_loss,
)
from pipeline.method.mixture import Mixture
from pipeline.method.mixup import Mix, draw, mixed_heads
from pipeline.method.objective import Losses, Objective
from pipeline.method.outputs import Outputs, Share
from pipeline.method.twonetworks import TwoNetworks
from pipeline.model.pair import separate
from shards.errors import InputError

Look = Callable[[torch.Tensor], tuple[torch.Tensor, list[torch.Tensor]]]

_LEAST = 1e-30  # of a loss: 0 in the bank is that of a sample which was never seen


class DivideMix(TwoNetworks):
    """Samples are divided by the OTHER network's losses; those that look wrong are learned without their label.

    Li, Socher, Hoi, "DivideMix: Learning with Noisy Labels as Semi-supervised Learning", ICLR 2020 (arXiv 2002.07394,
    algorithm 1; repository LiJunnan1992/DivideMix). Both networks warm up by cross entropy. From the end of the warm-up
    on, at the end of each epoch, a `Mixture` is fitted to each network's losses of all samples: w, the probability that
    a label is clean. In the next epoch a network takes a sample with w > 0.5, by the other network, as labelled, all
    others as unlabelled. Labelled: target = the label, refined by the network itself (`mixmatch.refined`). Unlabelled:
    what both networks guess (`mixmatch.guessed`). Two views of each image are mixed with all other views, and a mixed
    view is of its own sample's kind: total = labelled_loss + unlabelled_weight * ramp * unlabelled_loss + prior_loss.

    Differs from the paper, so that any number of processes streams the shards in the plan's order:

    - a sample's loss is what its newest training views had, before they were mixed, in the step that learned from them
      (the mean of both views; of the only one in the warm-up), by the statistics of the micro-batch. The paper takes
      one pass over all samples after the epoch. One that the epoch left out or that did not decode keeps its last loss;
      one without any is left out of the mixture, and is unlabelled;
    - a micro-batch holds labelled and unlabelled samples as they come, and each loss is the mean over its own kind (0
      where there is none). The paper draws as many of one kind as of the other;
    - both networks learn in one step, and answer each other by the statistics of the micro-batch, which leaves no trace
      in the running ones: after the warm-up these come from mixed images alone;
    - an epoch is one pass over all samples. In the paper it is one over the labelled ones;
    - where unlabelled_weight is 0 their code takes prior_loss over labelled samples. Here it is over all.

    Heads see the mixed views, and their loss is mixed as in `ElrPlus`: by the given labels, of all samples. Confidence
    in a label (ALASCA), what counts as right, and evidence go by the first view before it was mixed.

    Args:
        first, second: the networks' other losses, their state and evidence; base losses are not used. Each has the
            `BANKS`, of one column.
        look: forward of both networks without gradient, by the statistics of the micro-batch.
        gather: everybody's item, by rank, on every rank. Ranks have the samples in the order of positions.
        seed: of the run.
        steps_per_epoch: steps.
        warmup_epochs: of cross entropy, at least 1.
        confidence_penalty: on the negative entropy in the warm-up; theirs is 1 where noise is asymmetric.
        alpha: of the share's Beta distribution.
        temperature: of sharpening.
        unlabelled_weight: lambda_u.
        ramp_epochs: over which it rises from 0.

    Raises:
        InputError: a value out of range.
    """

    BANKS = ("loss", "clean")

    def __init__(
        self,
        first: Objective,
        second: Objective,
        look: Look,
        gather: Callable[[Any], list[Any]],
        seed: int,
        steps_per_epoch: int,
        warmup_epochs: int = 10,
        confidence_penalty: float = 0.0,
        alpha: float = 4.0,
        temperature: float = 0.5,
        unlabelled_weight: float = 25.0,
        ramp_epochs: float = 16.0,
    ) -> None:
        super().__init__(first, second)
        where = "in [method.dividemix]: must be"
        if warmup_epochs < 1:
            raise InputError(f"warmup_epochs = {warmup_epochs} {where} 1 or more (default 10)")
        if not (alpha > 0.0 and temperature > 0.0):
            raise InputError(f"alpha = {alpha}, temperature = {temperature} {where} above 0 (defaults 4.0, 0.5)")
        weights = {"confidence_penalty": confidence_penalty, "unlabelled_weight": unlabelled_weight}
        for name, value in {**weights, "ramp_epochs": ramp_epochs}.items():
            if not value >= 0.0:
                raise InputError(f"{name} = {value} {where} 0 or more")
        self._look, self._gather, self._seed, self._steps_per_epoch = look, gather, seed, steps_per_epoch
        self._warmup_epochs, self._penalty, self._alpha = warmup_epochs, confidence_penalty, alpha
        self._temperature, self._weight, self._ramp_epochs = temperature, unlabelled_weight, ramp_epochs
        self._ramped = 0.0
        self._mixes: list[Mix] = []
        self._answers: list[tuple[torch.Tensor, list[torch.Tensor]]] = []

    def inputs(self, batch: Batch, step: int, lane: int) -> torch.Tensor:
        """Return the first views, uint8 [B, H, W, 3], in the warm-up; then each network's mixed views of both.

        These are float32 [2, 2B, H, W, 3], first views first, after both networks have seen them unmixed.
        """
        epoch = step / self._steps_per_epoch
        if epoch < self._warmup_epochs:
            return batch.first_view
        self._ramped = self._weight * ramp(epoch, self._warmup_epochs, self._ramp_epochs)
        views = batch.images.flatten(0, 1)
        self._answers = separate(*self._look(views))
        place, valid = (self._seed, step, lane), batch.valid.repeat(2)
        self._mixes = [draw(valid, self._alpha, place, network) for network in range(2)]
        pixels = views.float()
        return torch.stack([mix.of(pixels) for mix in self._mixes])

    def __call__(
        self,
        main: torch.Tensor,
        aux: Sequence[torch.Tensor],
        target: torch.Tensor,
        positions: torch.Tensor,
        valid: torch.Tensor,
        epoch: float,
    ) -> Losses:
        """Return the losses of one micro-batch, of which `inputs` came before; logits are [2, B, K] or [2, 2B, K].

        Parts are summed over the networks, but for "confidence", their mean; "agreement" counts where both main heads
        predict the same. Shares: "labelled", the share of samples that learn by their label; "loss/labelled",
        "loss/unlabelled", "loss/prior". `right` and "evidence/..." are network 1's, whose confidence in a label is w.
        """
        students, answers, mixes = separate(main, aux), self._answers, self._mixes
        self._answers, self._mixes = [], []
        if not answers:
            seen = [
                [each.outputs(*own, target, positions, valid, epoch)]
                for each, own in zip(self.objectives, students, strict=True)
            ]
        else:
            seen = [_by_view(*own, target, positions, valid, epoch) for own in answers]
        for objective, views in zip(self.objectives, seen, strict=True):
            losses = torch.stack([cross_entropy(view.main.detach(), view.target) for view in views]).mean(dim=0)
            objective.banks["loss"].update(positions, losses.clamp(min=_LEAST).unsqueeze(1), 0.0, valid)
        if not answers:
            found = [self._warm_up(each, views[0]) for each, views in zip(self.objectives, seen, strict=True)]
        else:
            found = [self._divided(number, seen, *students[number], mixes[number]) for number in range(2)]
        parts = {name: found[0].parts[name] + found[1].parts[name] for name in found[0].parts}
        if "confidence" in parts:
            parts["confidence"] = parts["confidence"] / 2
        said = [views[0].main.argmax(dim=1) for views in seen]
        parts["agreement"] = (valid & (said[0] == said[1])).sum()
        shares = dict(found[0].shares)
        for name in shares.keys() & found[1].shares.keys():
            mine, its = shares[name], found[1].shares[name]
            shares[name] = Share(mine.part + its.part, mine.whole + its.whole)
        return Losses(found[0].total + found[1].total, found[0].right, parts, shares)

    def _warm_up(self, objective: Objective, outputs: Outputs) -> Losses:
        losses = cross_entropy(outputs.main, outputs.target) + self._penalty * negative_entropy(outputs.main)
        return objective.add_up(outputs, outputs.sum(losses), trusted=torch.ones_like(losses.detach()))

    def _divided(
        self, number: int, seen: list[list[Outputs]], main: torch.Tensor, aux: list[torch.Tensor], mix: Mix
    ) -> Losses:
        """Losses of one network for its mixed views, logits [2B, K], after what both said of each unmixed view."""
        objective, first = self.objectives[number], seen[number][0]
        target, positions, valid = first.target, first.positions, first.valid
        own, other = (mean_probabilities([view.main for view in seen[who]]) for who in (number, 1 - number))
        clean = self.objectives[1 - number].banks["clean"].read(positions).squeeze(1)
        labelled = valid & (clean > 0.5)
        known, unknown = refined(own, target, clean, self._temperature), guessed(own, other, self._temperature)
        targets = mix.of(torch.where(labelled.unsqueeze(1), known, unknown).repeat(2, 1))
        mixed = objective.outputs(main, aux, target.repeat(2), positions.repeat(2), valid.repeat(2), first.epoch)
        with_label, without = labelled.repeat(2), (valid & ~labelled).repeat(2)
        of_labelled = labelled_loss(mixed.main, targets, with_label)
        of_unlabelled = unlabelled_loss(mixed.main, targets, without)
        of_prior = prior_loss(mixed.main, mixed.valid)
        confidence = None if objective.trust is None else objective.trust(first)
        heads = None
        if objective.aux is not None:
            of_views = mixed_heads(objective.aux, mixed, mix, None if confidence is None else confidence.repeat(2))
            heads = of_views.unflatten(0, (2, -1)).mean(dim=0)
        count = valid.sum()
        total = of_labelled + self._ramped * of_unlabelled + of_prior
        found = objective.add_up(first, total * count, heads, clean)
        kept = labelled.sum()
        each = {
            "labelled": (of_labelled, kept),
            "unlabelled": (of_unlabelled, count - kept),
            "prior": (of_prior, count),
        }
        means = {f"loss/{name}": Share(loss.detach() * of, of) for name, (loss, of) in each.items()}
        return replace(found, shares=found.shares | means | {"labelled": Share(kept, count)})

    @torch.no_grad()
    def end_epoch(self, epochs: int) -> None:
        """Fit the mixtures, from the end of the warm-up on. The same for any number of ranks; waits for the device."""
        if epochs < self._warmup_epochs:
            return
        for objective in self.objectives:
            own = objective.banks["loss"].rows.squeeze(1).cpu().numpy()
            whole = np.concatenate(self._gather(own))
            mixture = self._gather(Mixture.fit(whole[_seen(whole)]))[0]  # other machines may round otherwise
            clean = np.zeros(own.shape)
            clean[_seen(own)] = mixture.clean(own[_seen(own)])
            objective.banks["clean"].rows.copy_(torch.from_numpy(clean).unsqueeze(1))


def _seen(losses: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Losses of samples that have one: 0 is where a bank begins."""
    return np.isfinite(losses) & (losses > 0)


def _by_view(
    main: torch.Tensor,
    aux: Sequence[torch.Tensor],
    target: torch.Tensor,
    positions: torch.Tensor,
    valid: torch.Tensor,
    epoch: float,
) -> list[Outputs]:
    """The outputs of each view, from logits [2B, K] of both."""
    views = zip(main.chunk(2), zip(*(head.chunk(2) for head in aux), strict=True) if aux else ((), ()), strict=True)
    return [Outputs.of(own, heads, target, positions, valid, epoch) for own, heads in views]
