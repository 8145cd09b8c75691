"""What a step minimises: a loss of the main head, one of the auxiliary heads, a Lipschitz penalty."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.data.batch import Batch
from pipeline.method.bank import SampleBank
from pipeline.method.evidence import Evidence
from pipeline.method.lipschitz import Penalty
from pipeline.method.losses import base_loss
from pipeline.method.outputs import BaseLoss, HeadLoss, Outputs, Share, Trusted
from shards.errors import InputError


@dataclass(frozen=True)
class Losses:
    """One micro-batch's result.

    `total` (0-dim, float32) is to be backpropagated: all weighted parts, summed over the valid samples and divided by
    the NOMINAL size B. `right` (0-dim) is how many valid samples' given class the main head predicts. `parts` are
    detached 0-dim SUMS over the valid samples, before any weight: "loss/base"; with auxiliary heads also "loss/aux"
    (summed over them), and "confidence" where a loss trusts labels more or less; with a penalty also
    "loss/penalty". Divided by the number of valid samples they are the means to log. `shares` are of other numbers of
    samples: see `Evidence`.
    """

    total: torch.Tensor
    right: torch.Tensor
    parts: dict[str, torch.Tensor]
    shares: dict[str, Share] = field(default_factory=dict)


class Objective:
    """Base loss of the main head, plus with `aux` its `aux_weight` times the losses of the auxiliary heads.

    With `penalty`, plus `penalty_weight` times that: a function of the main head's gradients, which sees the forward
    that these logits come from (`pipeline.method.lipschitz`). Otherwise the main head gets the base loss alone. Nothing
    here waits for the device.

    Args:
        base: loss of the main head; cross-entropy unless given.
        aux: loss of the auxiliary heads.
        penalty: penalty on the network.
        penalty_weight: its factor.
        banks: per-sample state that these losses keep, by name: saved, restored and taken back here.
        evidence: what to say of labels whose truth is known, if any is.
        trust: in each label, which these losses go by, if any does.

    Raises:
        InputError: a weight of the penalty below 0.
    """

    def __init__(
        self,
        base: BaseLoss | None = None,
        aux: HeadLoss | None = None,
        penalty: Penalty | None = None,
        penalty_weight: float = 0.0,
        banks: Mapping[str, SampleBank] | None = None,
        evidence: Evidence | None = None,
        trust: Trusted | None = None,
    ) -> None:
        if not 0.0 <= penalty_weight < math.inf:
            raise InputError(f"penalty_weight = {penalty_weight} in [method]: must be 0 or more, and finite")
        self.base = base or base_loss()
        self.aux = aux
        self.penalty = penalty
        self.penalty_weight = penalty_weight
        self.banks = dict(banks or {})
        self.evidence = evidence
        self.trust = trust

    def __call__(
        self,
        main: torch.Tensor,
        aux: Sequence[torch.Tensor],
        target: torch.Tensor,
        positions: torch.Tensor,
        valid: torch.Tensor,
        epoch: float,
    ) -> Losses:
        """Return the losses of one micro-batch, and move the banks on by one observation of each valid sample.

        `settle` follows after the last micro-batch of the step.
        A sample that is not valid adds nothing to a value, to a gradient or to a bank, be its logits NaN.

        Args:
            main: [B, K] logits of the main head.
            aux: logits [B, K] of each auxiliary head, the shallowest first.
            target: [B] int64; anything where not valid.
            positions: [B] int64, inside the banks' range.
            valid: [B] bool.
            epoch: epochs completed, from 0.

        Raises:
            InputError: a loss of heads without heads, or heads that no loss would train.
        """
        outputs = self.outputs(main, aux, target, positions, valid, epoch)
        return self.add_up(outputs, outputs.sum(self.base(outputs)))

    def inputs(self, batch: Batch, step: int, lane: int) -> torch.Tensor:
        """Return what the network is to see of a micro-batch: images [B, H, W, 3], values in 0..255.

        `step` and `lane` say which micro-batch of the run it is. A call with the network's answer follows.
        """
        return batch.images

    def outputs(
        self,
        main: torch.Tensor,
        aux: Sequence[torch.Tensor],
        target: torch.Tensor,
        positions: torch.Tensor,
        valid: torch.Tensor,
        epoch: float,
    ) -> Outputs:
        """Return what the losses are made from; arguments and errors are those of a call."""
        if self.aux is not None and not aux:
            raise InputError('heads = "none" in [model]: method.aux needs heads ("light" or "bottleneck")')
        if self.aux is None and aux:
            raise InputError('heads in [model]: no method.aux trains them; set heads = "none", or aux = "alasca"')
        return Outputs.of(main, aux, target, positions, valid, epoch)

    def add_up(
        self,
        outputs: Outputs,
        base: torch.Tensor,
        heads: torch.Tensor | None = None,
        trusted: torch.Tensor | None = None,
    ) -> Losses:
        """Return all losses of these outputs.

        Args:
            outputs: what the labels say of them counts as right, and gives evidence.
            base: 0-dim, the main head's losses, summed over the samples.
            heads: [B], the losses of the auxiliary heads, where they are not those of these outputs.
            trusted: [B] from 0 to 1, stands for the confidence in each label where evidence is gathered.
        """
        total, parts = base, {"loss/base": base.detach()}
        if self.aux is not None:
            regulariser = outputs.sum(self.aux(outputs) if heads is None else heads)
            total = total + self.aux.aux_weight * regulariser
            parts["loss/aux"] = regulariser.detach()
        confidence = None if self.trust is None else self.trust(outputs)
        if confidence is not None:
            parts["confidence"] = outputs.sum(confidence)
        if self.penalty is not None:
            each = self.penalty(outputs.main, outputs.target, outputs.positions, outputs.valid, outputs.epoch)
            penalty = outputs.sum(each).float()
            total = total + self.penalty_weight * penalty
            parts["loss/penalty"] = penalty.detach()
        shares: dict[str, Share] = {}
        if self.evidence is not None:
            shares = self.evidence(outputs, confidence if trusted is None else trusted)
        right = outputs.sum(outputs.main.argmax(dim=1) == outputs.target)
        return Losses(total / outputs.main.shape[0], right, parts, shares)

    def settle(self, skipped: torch.Tensor) -> None:
        """End a step; where `skipped` (0-dim bool, on the device) is True, the banks become what they were before."""
        for bank in self.banks.values():
            bank.settle(skipped)

    def end_epoch(self, epochs: int) -> None:
        """After the last step of an epoch, on all ranks together; `epochs` are completed. May wait for the device."""

    def state_dict(self) -> dict[str, Any]:
        """Return {name: state} of the banks."""
        return {name: bank.state_dict() for name, bank in self.banks.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of an objective of the same kind.

        Raises:
            ValueError: other banks than these, or one of another range or width.
        """
        if set(state) != set(self.banks):
            raise ValueError(
                f"the state holds {sorted(state) or 'nothing'}, this objective {sorted(self.banks) or 'nothing'}"
            )
        for name, bank in self.banks.items():
            bank.load_state_dict(state[name])
