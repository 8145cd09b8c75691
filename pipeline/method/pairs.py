"""Two networks: which samples each of them learns from, as the other one sees it.

Everything is chosen inside one micro-batch, so that nothing depends on the number of processes, and on the device.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from shards.errors import InputError

_ROUNDING = 1e-6  # 0.8 * 5 may be a little more than 4


class Seen(NamedTuple):
    """What two networks say of a micro-batch.

    `losses` are the base losses [B] of both, without gradient; `differ` bool [B], where their main heads predict
    different classes; `valid` bool [B]; `epoch` the number of epochs completed.
    """

    losses: Sequence[torch.Tensor]
    differ: torch.Tensor
    valid: torch.Tensor
    epoch: float


class Choice(Protocol):
    """Which samples the base loss of each network is the mean of.

    `least` is the share of the valid samples that such a mean is taken over at least: fewer chosen ones weigh less.
    """

    least: float

    def __call__(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the choices, bool [B], for the first and for the second network; none but valid samples."""
        ...


def small_losses(losses: torch.Tensor, among: torch.Tensor, keep: float) -> torch.Tensor:
    """Return bool [B]: the keep * n of the n candidates that have the smallest losses, rounded up.

    Rounded up because the papers take the least sum over sets of AT LEAST that size (algorithm 1 of both); the released
    code rounds down, which may leave none (Co-teaching+'s then takes all). Of equals, the first ones are chosen.

    Args:
        losses: [B], float; NaN counts as the largest.
        among: bool [B], the candidates.
        keep: from 0 to 1.
    """
    # A candidate's own loss may be infinite or NaN: it still stands before what is no candidate.
    most = torch.finfo(losses.dtype).max
    finite = losses.nan_to_num(nan=most, posinf=most)
    order = torch.where(among, finite, torch.inf).argsort(stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    count = (keep * among.sum().double() - _ROUNDING).ceil()
    return among & (rank < count)


def forget_rate(rate: float, ramp_epochs: float, epoch: float) -> float:
    """Return min(e / T_k, 1) * rate: the share that is left out after `epoch` epochs; `rate` at once for T_k = 0.

    1 - R(T) of Han et al. 2018 (arXiv 1804.06872, algorithm 1, step 8, exponent 1), and 1 - lambda(e) of Yu et al. 2019
    (arXiv 1901.04215, algorithm 1, the first of its two schedules), updated after each epoch, so 0 in the first. Their
    code counts from 1: it leaves out rate / 9 in its first epoch, and is at `rate` two epochs earlier.
    """
    return rate * (min(epoch / ramp_epochs, 1.0) if ramp_epochs > 0 else 1.0)


class Decoupling:
    """Both networks learn from the samples on which their predictions differ, whatever the label.

    Malach and Shalev-Shwartz, "Decoupling 'when to update' from 'how to update'", NeurIPS 2017 (arXiv 1706.02613,
    algorithm 1). As in the authors' code (emalach/UpdateByDisagreement), the loss is the mean over these, or a tenth of
    the mini-batch if they are fewer: one sample alone would otherwise weigh as much as all of them.

    Args:
        warmup_epochs: before, both learn from everything; their code's default is 0.

    Raises:
        InputError: a negative number.
    """

    least = 0.1

    def __init__(self, warmup_epochs: float = 0.0) -> None:
        if not warmup_epochs >= 0.0:
            raise InputError(f"warmup_epochs = {warmup_epochs} in [method.decoupling]: must be 0 or more (default 0)")
        self._warmup_epochs = warmup_epochs

    def __call__(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the choices."""
        kept = seen.valid if seen.epoch < self._warmup_epochs else seen.valid & seen.differ
        return kept, kept


class CoTeaching:
    """Each network learns from the samples whose loss is small for the OTHER one.

    Han, Yao, Yu, Niu, Xu, Hu, Tsang, Sugiyama, "Co-teaching", NeurIPS 2018 (arXiv 1804.06872, algorithm 1): of a
    mini-batch the share R(T) = 1 - `forget_rate`.

    Args:
        rate: tau, the share of wrong labels: what is left out in the end.
        ramp_epochs: T_k, over which it rises from 0.

    Raises:
        InputError: a rate outside [0, 1), or a negative number of epochs.
    """

    least = 0.0

    def __init__(self, rate: float, ramp_epochs: float = 10.0) -> None:
        _check(rate, ramp_epochs, "coteaching")
        self._rate, self._ramp_epochs = rate, ramp_epochs

    def __call__(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the choices."""
        return self.among(seen, seen.valid)

    def among(self, seen: Seen, candidates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the choices among some valid samples, bool [B]."""
        keep = 1.0 - forget_rate(self._rate, self._ramp_epochs, seen.epoch)
        of_first, of_second = (small_losses(losses, candidates, keep) for losses in seen.losses)
        return of_second, of_first


class CoTeachingPlus:
    """Co-teaching among the samples on which the networks' predictions differ.

    Yu, Han, Yao, Niu, Tsang, Sugiyama, "How does Disagreement Help Generalization against Label Corruption?", ICML 2019
    (arXiv 1901.04215, algorithm 1). Where the networks agree on a whole mini-batch nothing is chosen, and it teaches
    only what is beside the base loss. Their code (xingruiyu/coteaching_plus) then takes all of it in the first batches
    of an epoch (epoch * batch < 5000) and nothing later; it also divides the mean by the number of samples once more,
    and takes the softmax twice. None of these is done here.

    Args:
        rate, ramp_epochs: see `CoTeaching`.
        initial_epochs: of plain co-teaching, before. Their code has 20 for CIFAR-10, 5 for CIFAR-100, 100 for
            Tiny-ImageNet, 0 for MNIST.

    Raises:
        InputError: as `CoTeaching`.
    """

    least = 0.0

    def __init__(self, rate: float, ramp_epochs: float = 10.0, initial_epochs: float = 20.0) -> None:
        _check(rate, ramp_epochs, "coteaching_plus")
        if not initial_epochs >= 0.0:
            raise InputError(f"initial_epochs = {initial_epochs} in [method.coteaching_plus]: must be 0 or more")
        self._coteaching, self._initial_epochs = CoTeaching(rate, ramp_epochs), initial_epochs

    def __call__(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the choices."""
        initial = seen.epoch < self._initial_epochs
        return self._coteaching.among(seen, seen.valid if initial else seen.valid & seen.differ)


def _check(rate: float, ramp_epochs: float, section: str) -> None:
    if not 0.0 <= rate < 1.0:
        raise InputError(f"forget_rate = {rate} in [method.{section}]: must be from 0 to below 1")
    if not ramp_epochs >= 0.0:
        raise InputError(f"ramp_epochs = {ramp_epochs} in [method.{section}]: must be 0 or more (default 10)")
