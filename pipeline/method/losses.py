"""Per-sample classification losses for the main head.

Each takes logits [B, K] of any float dtype and targets [B] (int64, 0 .. K-1) and returns losses [B] in float32. All of
them are functions of log-probabilities, so that logits of +-1e4 give finite values and gradients.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

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
    4 (1 - p_y). Code that clamps the one-hot target at 1e-4 under a NATURAL logarithm has A = -9.21 in effect: for the
    same loss our beta is 2.3 times theirs.

    Raises:
        InputError: `alpha` or `beta` is negative.
    """
    if not (alpha >= 0.0 and beta >= 0.0):
        raise InputError(f"alpha = {alpha}, beta = {beta} in [method.sce]: must not be negative (defaults 1.0, 0.4)")
    log_p = log_probability(logits, target)
    return -alpha * log_p + beta * LOG_ZERO * torch.expm1(log_p)


# mypy cannot express "tensors first, then each loss's own keywords".
BASE_LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "ce": cross_entropy,
    "ls": label_smoothing,
    "gce": generalized_cross_entropy,
    "sce": symmetric_cross_entropy,
}
