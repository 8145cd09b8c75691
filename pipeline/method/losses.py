"""Per-sample classification losses that need nothing but logits and label.

Each takes logits [B, K] of any float dtype and targets [B] (int64, 0 .. K-1) and returns losses [B] in float32. All of
them are functions of log-probabilities, so that logits of +-1e4 give finite values and gradients.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping

import torch
from torch.nn import functional as F

from pipeline.method.outputs import BaseLoss, Outputs
from shards.errors import InputError

LOG_ZERO = -4.0


def log_probability(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return log softmax(logits)[target], [B], in float32, for logits [B, K] and target [B]."""
    return F.log_softmax(logits.float(), dim=1).gather(1, target.unsqueeze(1)).squeeze(1)


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return -log p_y, [B], in float32, for logits [B, K] and target [B]."""
    return -log_probability(logits, target)


def label_smoothing(logits: torch.Tensor, target: torch.Tensor, epsilon: float = 0.1) -> torch.Tensor:
    """Return the cross entropy [B] (float32) with smoothed targets, for logits [B, K] and target [B].

    Convention of Szegedy et al. 2016 (arXiv 1512.00567, section 7, epsilon 0.1) and of torch: epsilon is spread evenly
    over ALL K classes, so the target's own share is 1 - epsilon + epsilon / K.

    Raises:
        InputError: `epsilon` is outside [0, 1].
    """
    if not 0.0 <= epsilon <= 1.0:
        raise InputError(f"epsilon = {epsilon} in [method.ls]: must be from 0 to 1 (default 0.1)")
    log_p = F.log_softmax(logits.float(), dim=1)
    own = log_p.gather(1, target.unsqueeze(1)).squeeze(1)
    return -(1.0 - epsilon) * own - epsilon * log_p.mean(dim=1)


def generalized_cross_entropy(logits: torch.Tensor, target: torch.Tensor, q: float = 0.7) -> torch.Tensor:
    """Return (1 - p_y^q) / q, [B], in float32, for logits [B, K] and target [B].

    Zhang & Sabuncu 2018 (arXiv 1805.07836, equation 6; q = 0.7). q -> 0 is cross entropy, q = 1 the absolute error.

    Raises:
        InputError: `q` is outside (0, 1].
    """
    if not 0.0 < q <= 1.0:
        raise InputError(f'q = {q} in [method.gce]: must be above 0 and at most 1 (default 0.7); for 0 use base = "ce"')
    # p^q as exp(q log p): its derivative p^q in log p goes to 0 with p, where that of pow, q p^(q-1), is infinite.
    return -torch.expm1(q * log_probability(logits, target)) / q


def symmetric_cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, alpha: float = 1.0, beta: float = 0.4
) -> torch.Tensor:
    """Return alpha * CE + beta * RCE, [B], in float32, for logits [B, K] and target [B].

    Wang et al. 2019 (arXiv 1908.06112): the reverse cross entropy is -sum_k p_k log(onehot_k) with log 0 := A = -4, so
    4 (1 - p_y). The authors' own code clamps the one-hot target at 1e-4 under a NATURAL logarithm, A = -9.21 in effect:
    for the same loss our beta is 2.3 times theirs. The defaults are those of ALASCA's released code.

    Raises:
        InputError: `alpha` or `beta` is negative.
    """
    if not (alpha >= 0.0 and beta >= 0.0):
        raise InputError(f"alpha = {alpha}, beta = {beta} in [method.sce]: must not be negative (defaults 1.0, 0.4)")
    log_p = log_probability(logits, target)
    return -alpha * log_p + beta * LOG_ZERO * torch.expm1(log_p)


def normalized_and_reverse_cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, alpha: float = 1.0, beta: float = 1.0
) -> torch.Tensor:
    """Return alpha * NCE + beta * RCE, [B], in float32, for logits [B, K] and target [B].

    Ma et al. 2020 (arXiv 2006.13554), an active and a passive loss: NCE = log p_y / sum_k log p_k, and the reverse
    cross entropy of `symmetric_cross_entropy`, 4 (1 - p_y). Their code has 9.21 (1 - p_y), too: for the same loss our
    beta is 2.3 times theirs. alpha and beta are theirs for CIFAR-10; on CIFAR-100 they take 10 and 0.1, on
    mini-WebVision (50 classes) 50 and 0.1.

    Raises:
        InputError: `alpha` or `beta` is negative.
    """
    if not (alpha >= 0.0 and beta >= 0.0):
        raise InputError(
            f"alpha = {alpha}, beta = {beta} in [method.nce_rce]: must not be negative (defaults 1.0, 1.0)"
        )
    log_p = F.log_softmax(logits.float(), dim=1)
    own = log_p.gather(1, target.unsqueeze(1)).squeeze(1)
    # The sum is at most -K log K: no small divisor.
    return alpha * own / log_p.sum(dim=1) + beta * LOG_ZERO * torch.expm1(own)


# mypy cannot express "tensors first, then each loss's own keywords".
BASE_LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "ce": cross_entropy,
    "ls": label_smoothing,
    "gce": generalized_cross_entropy,
    "sce": symmetric_cross_entropy,
    "nce_rce": normalized_and_reverse_cross_entropy,
}


def base_loss(name: str = "ce", options: Mapping[str, float] | None = None) -> BaseLoss:
    """Return one of BASE_LOSSES, with these keywords, as a loss of the main head.

    Raises:
        InputError: no such loss, or an option that it does not have or that is out of range.
    """
    if name not in BASE_LOSSES:
        raise InputError(f'base = "{name}" in [method]: {_nearest(name, list(BASE_LOSSES))}')
    loss, keywords = BASE_LOSSES[name], dict(options or {})
    known = [key for key in inspect.signature(loss).parameters if key not in ("logits", "target")]
    for key in keywords:
        if key not in known:
            raise InputError(f"{key} in [method.{name}]: {_nearest(key, known)}")
    # One tiny call, so that a value out of range is refused here and not at the first step.
    loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), **keywords)

    def of_main_head(outputs: Outputs) -> torch.Tensor:
        return loss(outputs.main, outputs.target, **keywords)

    return of_main_head


def _nearest(word: str, known: list[str]) -> str:
    if not known:
        return "it has no options; remove the key"
    near = difflib.get_close_matches(word, known, n=1)
    return (f'did you mean "{near[0]}"? ' if near else "") + f"known: {', '.join(known)}"
