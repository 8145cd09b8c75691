"""What DivideMix makes of two networks' answers: targets for both kinds of samples, and the losses against them.

Li, Socher and Hoi 2020 (arXiv 2002.07394, section 3.2 and algorithm 1), after MixMatch (Berthelot et al. 2019, arXiv
1905.02249). All of it in float32 and from log-probabilities, whatever the logits' type; nothing waits for the device.
"""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

_NOTHING = -1e30  # log of the probability of what does not count: -inf would make NaN of its gradient


def sharpen(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return p^(1/T) over its sum, for p [B, K] of sum 1."""
    return torch.softmax(probabilities.log() / temperature, dim=1)


def mean_probabilities(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean of the softmax of several logits [B, K], in float32."""
    return torch.stack([torch.softmax(each.float(), dim=1) for each in logits]).mean(dim=0)


def refined(own: torch.Tensor, target: torch.Tensor, clean: torch.Tensor, temperature: float) -> torch.Tensor:
    """Co-refinement: the label as far as the OTHER network takes it for clean, else what the network itself says.

    sharpen(w * onehot(y) + (1 - w) * p).

    Args:
        own: p, [B, K], the network's mean probabilities over views.
        target: y, [B] int64.
        clean: w, [B], from 0 to 1.
        temperature: T.
    """
    label = F.one_hot(target, own.shape[1]).to(own.dtype)
    trusted = clean.to(own.dtype).unsqueeze(1)
    return sharpen(trusted * label + (1.0 - trusted) * own, temperature)


def guessed(own: torch.Tensor, other: torch.Tensor, temperature: float) -> torch.Tensor:
    """Co-guessing: what both networks say, [B, K] each their mean over views, averaged and sharpened."""
    return sharpen((own + other) / 2.0, temperature)


def ramp(epoch: float, warmup_epochs: float, ramp_epochs: float) -> float:
    """Return how much of the unlabelled weight counts after `epoch` epochs: from 0 at the end of the warm-up to 1."""
    if ramp_epochs == 0:
        return 1.0
    return min(max((epoch - warmup_epochs) / ramp_epochs, 0.0), 1.0)


def labelled_loss(logits: torch.Tensor, targets: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy, 0-dim, over some samples; 0 over none.

    Args:
        logits: [B, K], any float dtype.
        targets: [B, K], of sum 1.
        among: bool [B].
    """
    return _mean(-(targets * F.log_softmax(logits.float(), dim=1)).sum(dim=1), among)


def unlabelled_loss(logits: torch.Tensor, targets: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of the probabilities, 0-dim, over some samples and ALL K classes; 0 over none.

    The paper writes the sum over the classes; the weights of its experiments belong to the authors' code, which (as
    MixMatch) takes the mean. Arguments are those of `labelled_loss`.
    """
    return _mean((torch.softmax(logits.float(), dim=1) - targets).square().mean(dim=1), among)


def prior_loss(logits: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """Return sum_c pi_c log(pi_c / mean p_c), 0-dim, with pi_c = 1 / K and the mean over some samples.

    It keeps the network from putting all samples into one class. 0 over none. Arguments are those of `labelled_loss`.
    """
    log_p = F.log_softmax(logits.float(), dim=1)
    classes, count = logits.shape[1], among.sum().float()
    log_mean = torch.where(among.unsqueeze(1), log_p, _NOTHING).logsumexp(dim=0) - count.clamp(min=1.0).log()
    return torch.where(count > 0, -log_mean.mean() - math.log(classes), 0.0)


def negative_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return sum_c p_c log p_c, [B]: as a penalty it makes a network less sure of wrong labels that look alike.

    Pereyra et al. 2017 (arXiv 1701.06548); section 3.1 takes it in the warm-up under asymmetric noise.
    """
    log_p = F.log_softmax(logits.float(), dim=1)
    return (log_p.exp() * log_p).sum(dim=1)


def _mean(values: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    return torch.where(among, values, 0.0).sum() / among.sum().clamp(min=1)
