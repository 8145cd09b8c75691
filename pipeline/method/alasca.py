"""ALASCA: adaptive label smoothing on auxiliary classifiers (Ko, Yi, Yun; AAAI 2023; arXiv 2206.07277).

The numbers are those of the released code, listed in docs/method.md.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from pipeline.method.bank import SampleBank
from pipeline.method.losses import log_probability
from pipeline.method.outputs import Outputs
from shards.errors import InputError

CONFIDENCES = ("ema", "averaged", "current")


def smoothed_cross_entropy(logits: torch.Tensor, target: torch.Tensor, confidence: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy [B] (float32) with `confidence` on the target, the rest shared by the OTHER classes.

    The soft label is confidence on y and (1 - confidence) / (K - 1) on each other class (docs/method.md, row "smoothed
    target"). Unlike `losses.label_smoothing`, y gets no part of the rest. Gradients flow to the logits alone.

    Args:
        logits: [B, K], any float dtype, K >= 2.
        target: [B] int64.
        confidence: [B] in [0, 1].
    """
    others = logits.shape[1] - 1
    assert others >= 1, "needs at least 2 classes"
    confidence = confidence.detach().float()
    log_p = F.log_softmax(logits.float(), dim=1)
    own = log_p.gather(1, target.unsqueeze(1)).squeeze(1)
    rest = log_p.sum(dim=1) - own
    return -confidence * own - (1.0 - confidence) / others * rest


@dataclass(frozen=True)
class AdaptiveSmoothing:
    """How much a sample's own label is trusted.

    `momentum` is that of the moving average of the main logits (for `SampleBank.update`), `temperature` divides them,
    `warmup_epochs` (E_w) is the number of epochs over which the confidence moves from 1 to alpha.

    Raises:
        InputError: momentum outside [0, 1), temperature not above 0, or warm-up below 0.
    """

    momentum: float = 0.7
    temperature: float = 0.333
    warmup_epochs: float = 30

    def __post_init__(self) -> None:
        where = "in [method.alasca]: must be"
        if not 0.0 <= self.momentum < 1.0:
            raise InputError(f"momentum = {self.momentum} {where} from 0 to below 1 (default 0.7)")
        if not self.temperature > 0.0:
            raise InputError(f"temperature = {self.temperature} {where} above 0 (default 0.333)")
        if not self.warmup_epochs >= 0:
            raise InputError(f"warmup_epochs = {self.warmup_epochs} {where} 0 or more (a quarter of the run)")

    @classmethod
    def current(cls, warmup_epochs: float = 3) -> "AdaptiveSmoothing":
        """Return the variant for Clothing1M: alpha = softmax(z0)[y] of the logits at hand, no average, no temperature.

        It is the momentum 0, temperature 1 case: pass the main logits themselves to `confidence`; no bank is needed.
        """
        return cls(momentum=0.0, temperature=1.0, warmup_epochs=warmup_epochs)

    def confidence(self, ema_logits: torch.Tensor, target: torch.Tensor, epoch: float) -> torch.Tensor:
        """Return r * alpha + (1 - r), [B], float32, without gradient.

        alpha = softmax(ema_logits / T)[y] and r = min(1, epoch / E_w), which is 1 for E_w = 0.

        Args:
            ema_logits: [B, K], already updated with this step's logits.
            target: [B] int64.
            epoch: epochs completed, from 0.
        """
        alpha = log_probability(ema_logits.detach().float() / self.temperature, target).exp()
        ramp = min(1.0, epoch / self.warmup_epochs) if self.warmup_epochs > 0 else 1.0
        return ramp * alpha + (1.0 - ramp)


class Trust:
    """How far each sample's given label is trusted, [B] from 0 to 1, by what the network says of the sample.

    Several losses may ask for it in one micro-batch: the bank moves on once.

    Args:
        momentum, temperature, warmup_epochs: see `AdaptiveSmoothing`; the defaults are those for CIFAR and WebVision.
        confidence: "ema" (of the moving average of the main logits), "averaged" (of that of the mean of the main and
            the last auxiliary logits: the prediction that is reported as averaged; ours, not the paper's) or "current"
            (of the main logits at hand, without momentum and temperature: the Clothing1M variant).
        bank: of K columns, for the moving average; given if and only if there is one.

    Raises:
        InputError: a value out of range.
    """

    def __init__(
        self,
        momentum: float = 0.7,
        temperature: float = 0.333,
        warmup_epochs: float = 30,
        confidence: str = "ema",
        bank: SampleBank | None = None,
    ) -> None:
        if confidence not in CONFIDENCES:
            raise InputError(f'confidence = "{confidence}" in [method.alasca]: choose one of {", ".join(CONFIDENCES)}')
        if confidence == "current":
            self.smoothing = AdaptiveSmoothing.current(warmup_epochs)
        else:
            self.smoothing = AdaptiveSmoothing(momentum, temperature, warmup_epochs)
        assert (bank is not None) == (confidence != "current"), "a bank if and only if there is an average"
        self._bank, self._averages = bank, confidence == "averaged"
        self._last: tuple[weakref.ref[Outputs], torch.Tensor] | None = None  # to hold it would hold its graph

    def __call__(self, outputs: Outputs) -> torch.Tensor:
        """Return it, without gradient, after one observation of each valid sample has moved its average on."""
        if outputs.confidence is not None:
            return outputs.confidence
        if self._last is not None and self._last[0]() is outputs:
            return self._last[1]
        logits = outputs.main.detach()
        if self._averages:
            logits = averaged_prediction(logits, [head.detach() for head in outputs.aux])
        if self._bank is not None:
            logits = self._bank.update(outputs.positions, logits, self.smoothing.momentum, outputs.valid)
        found = self.smoothing.confidence(logits, outputs.target, outputs.epoch)
        self._last = weakref.ref(outputs), found
        return found


class Alasca:
    """Cross entropy of each auxiliary head with smoothed targets; the defaults are the released ones (docs/method.md).

    Args:
        trust: in each label.
        aux_weight: lambda, on EACH head.

    Raises:
        InputError: a negative weight.
    """

    def __init__(self, trust: Trust, aux_weight: float = 2.0) -> None:
        if not aux_weight >= 0.0:
            raise InputError(f"aux_weight = {aux_weight} in [method.alasca]: must be 0 or more (default 2.0)")
        self.aux_weight, self._trust = aux_weight, trust

    def __call__(self, outputs: Outputs) -> torch.Tensor:
        """Return the losses of the heads."""
        confidence = self._trust(outputs)
        each = [smoothed_cross_entropy(head, outputs.target, confidence) for head in outputs.aux]
        return torch.stack(each).sum(dim=0)


class AdaptiveBase:
    """The same smoothing of the main head's targets, [B]: ours. The paper smooths those of the heads alone.

    Args:
        trust: in each label; that of the heads, if they have one.
    """

    def __init__(self, trust: Trust) -> None:
        self._trust = trust

    def __call__(self, outputs: Outputs) -> torch.Tensor:
        """Return the losses."""
        return smoothed_cross_entropy(outputs.main, outputs.target, self._trust(outputs))


def averaged_prediction(main: torch.Tensor, aux: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean of the main and the LAST auxiliary logits, [B, K], float32; the main ones where there is no head.

    docs/method.md, row "prediction". Report it beside the main head's own accuracy, never instead of it.
    """
    if not aux:
        return main.float()
    return (main.float() + aux[-1].float()) / 2.0
