"""What a step minimises: a base loss on the main head, a regulariser on the auxiliary heads, a Lipschitz penalty."""

import difflib
import functools
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.method.alasca import AdaptiveSmoothing, smoothed_cross_entropy
from pipeline.method.bank import SampleBank
from pipeline.method.lipschitz import Penalty
from pipeline.method.losses import BASE_LOSSES
from shards.errors import InputError

CONFIDENCES = ("ema", "current")


@dataclass(frozen=True)
class Alasca:
    """Settings of ALASCA; the defaults are the released ones for CIFAR and WebVision (docs/method.md).

    `aux_weight` is lambda, on EACH head. `confidence` is "ema" (moving average of the main logits, one bank row per
    sample) or "current" (the logits at hand, without momentum and temperature: the Clothing1M variant).

    Raises:
        InputError: a value out of range.
    """

    aux_weight: float = 2.0
    momentum: float = 0.7
    temperature: float = 0.333
    warmup_epochs: float = 30
    confidence: str = "ema"
    smoothing: AdaptiveSmoothing = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.confidence not in CONFIDENCES:
            raise InputError(f'confidence = "{self.confidence}" in [method.alasca]: choose "ema" or "current"')
        if not self.aux_weight >= 0.0:
            raise InputError(f"aux_weight = {self.aux_weight} in [method.alasca]: must be 0 or more (default 2.0)")
        if self.confidence == "ema":
            smoothing = AdaptiveSmoothing(self.momentum, self.temperature, self.warmup_epochs)
        else:
            smoothing = AdaptiveSmoothing.current(self.warmup_epochs)
        object.__setattr__(self, "smoothing", smoothing)

    @property
    def needs_bank(self) -> bool:
        """Whether the objective must be given a SampleBank of K columns."""
        return self.confidence == "ema"


@dataclass(frozen=True)
class Losses:
    """One micro-batch's result.

    `total` (0-dim, float32) is to be backpropagated: all weighted parts, summed over the valid samples and divided by
    the NOMINAL size B. `parts` are detached 0-dim SUMS over the valid samples, before any weight: "loss/base"; with
    ALASCA also "loss/aux" (summed over the heads) and "confidence", with a penalty also "loss/penalty". Divided by the
    number of valid samples they are the means to log.
    """

    total: torch.Tensor
    parts: dict[str, torch.Tensor]


class Objective:
    """Base loss on the main head plus, with `aux`, lambda * sum over heads of CE(head, smoothed target).

    With `penalty`, plus `penalty_weight` times that: a function of the main head's gradients, which sees the forward
    that these logits come from (`pipeline.method.lipschitz`). Otherwise the main head gets the base loss alone. Nothing
    here waits for the device.

    Raises:
        InputError: an unknown base loss, or an option that it does not have or that is out of range; a weight below 0.
    """

    def __init__(
        self,
        base: str = "ce",
        base_options: Mapping[str, float] | None = None,
        aux: Alasca | None = None,
        bank: SampleBank | None = None,
        penalty: Penalty | None = None,
        penalty_weight: float = 0.0,
    ) -> None:
        assert (bank is not None) == (aux is not None and aux.needs_bank), "a bank if and only if aux needs one"
        if not 0.0 <= penalty_weight < math.inf:
            raise InputError(f"penalty_weight = {penalty_weight} in [method]: must be 0 or more, and finite")
        self.base = _base_loss(base, dict(base_options or {}))
        self.aux = aux
        self.bank = bank
        self.penalty = penalty
        self.penalty_weight = penalty_weight

    def __call__(
        self,
        main: torch.Tensor,
        aux: Sequence[torch.Tensor],
        target: torch.Tensor,
        positions: torch.Tensor,
        valid: torch.Tensor,
        epoch: float,
    ) -> Losses:
        """Return the losses of one micro-batch, and move the bank on by one observation of each valid sample.

        `settle` follows after the last micro-batch of the step.
        A sample that is not valid adds nothing to a value, to a gradient or to the bank, be its logits NaN.

        Args:
            main: [B, K] logits of the main head.
            aux: logits [B, K] of each auxiliary head, the shallowest first.
            target: [B] int64; anything where not valid.
            positions: [B] int64, inside the bank's range.
            valid: [B] bool.
            epoch: epochs completed, from 0.

        Raises:
            InputError: ALASCA without heads, or heads that no loss would train.
        """
        if self.aux is not None and not aux:
            raise InputError('heads = "none" in [model]: method.aux = "alasca" needs heads ("light" or "bottleneck")')
        if self.aux is None and aux:
            raise InputError('heads in [model]: no method.aux trains them; set heads = "none", or aux = "alasca"')
        # Masking the losses alone would keep NaN out of the values, but not out of the gradients (0 * NaN).
        main = _masked(main, valid)
        target = torch.where(valid, target, 0)
        base = _sum(self.base(main, target), valid)
        total, parts = base, {"loss/base": base.detach()}
        if self.aux is not None:
            confidence = self._confidence(self.aux.smoothing, main, target, positions, valid, epoch)
            heads = sum(smoothed_cross_entropy(_masked(logits, valid), target, confidence) for logits in aux)
            assert isinstance(heads, torch.Tensor)
            regulariser = _sum(heads, valid)
            total = total + self.aux.aux_weight * regulariser
            parts["loss/aux"] = regulariser.detach()
            parts["confidence"] = _sum(confidence, valid)
        if self.penalty is not None:
            penalty = _sum(self.penalty(main, target, positions, valid, epoch), valid).float()
            total = total + self.penalty_weight * penalty
            parts["loss/penalty"] = penalty.detach()
        return Losses(total / main.shape[0], parts)

    def _confidence(
        self,
        smoothing: AdaptiveSmoothing,
        main: torch.Tensor,
        target: torch.Tensor,
        positions: torch.Tensor,
        valid: torch.Tensor,
        epoch: float,
    ) -> torch.Tensor:
        logits = main.detach()
        if self.bank is not None:
            logits = self.bank.update(positions, logits, smoothing.momentum, valid)
        return smoothing.confidence(logits, target, epoch)

    def settle(self, skipped: torch.Tensor) -> None:
        """End a step; where `skipped` (0-dim bool, on the device) is True, the bank becomes what it was before it."""
        if self.bank is not None:
            self.bank.settle(skipped)

    def state_dict(self) -> dict[str, Any]:
        """Return {"bank": ...}, or {} for an objective without per-sample state."""
        return {} if self.bank is None else {"bank": self.bank.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of an objective of the same kind.

        Raises:
            ValueError: a bank where none is needed or the other way round, or one of another range or width.
        """
        if ("bank" in state) != (self.bank is not None):
            raise ValueError(
                f"the state holds {sorted(state) or 'nothing'}, this objective {sorted(self.state_dict())}"
            )
        if self.bank is not None:
            self.bank.load_state_dict(state["bank"])


def _base_loss(name: str, options: dict[str, float]) -> "functools.partial[torch.Tensor]":
    if name not in BASE_LOSSES:
        raise InputError(f'base = "{name}" in [method]: {_nearest(name, list(BASE_LOSSES))}')
    loss = BASE_LOSSES[name]
    known = [key for key in inspect.signature(loss).parameters if key not in ("logits", "target")]
    for key in options:
        if key not in known:
            raise InputError(f"{key} in [method.{name}]: {_nearest(key, known)}")
    # One tiny call, so that a value out of range is refused here and not at the first step.
    loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), **options)
    return functools.partial(loss, **options)


def _nearest(word: str, known: list[str]) -> str:
    if not known:
        return "it has no options; remove the key"
    near = difflib.get_close_matches(word, known, n=1)
    return (f'did you mean "{near[0]}"? ' if near else "") + f"known: {', '.join(known)}"


def _masked(logits: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return torch.where(valid.unsqueeze(1), logits, 0.0)


def _sum(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return torch.where(valid, values, 0.0).sum()
