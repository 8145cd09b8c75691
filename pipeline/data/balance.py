"""Class-balanced epochs: how many samples of each class a lane gives, and which."""

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError

Counts = NDArray[np.int64]


class Balance:
    """What class every sample is of, and how many of them form an epoch; holds no other state.

    Args:
        labels: of the samples, by position, [N].
        samples: of an epoch (None: of each class as many as the rarest one has).

    Raises:
        InputError: an epoch of more samples than there are.
    """

    def __init__(self, labels: NDArray[np.integer], samples: int | None) -> None:
        self.labels, self._classes = np.unique(labels, return_inverse=True)  # classes that do not occur have no share
        if samples is not None and samples > len(labels):
            raise InputError(f"data.balance = {samples}: an epoch of more samples than the {len(labels)} there are")
        rarest = int(np.bincount(self._classes).min()) if len(labels) else 0
        self.samples = rarest * len(self.labels) if samples is None else samples

    def chosen(self, positions: slice, samples: int, turn: int, words: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which samples of a lane an epoch takes, bool [n].

        Args:
            positions: of the lane, n of them.
            samples: how many it gives.
            turn: number of this lane's turn, over all lanes and epochs.
            words: random, uint64 [n]; of each class those with the lowest are taken.
        """
        classes = self._classes[positions]
        available = self._available(positions)
        quota = quotas(available, samples, turn)
        order = np.lexsort((words, classes))
        rank = np.empty(len(classes), dtype=np.int64)
        rank[order] = np.arange(len(classes)) - (np.cumsum(available) - available)[classes[order]]
        return rank < quota[classes]

    def lacking(self, positions: slice, samples: int, turn: int) -> Counts:
        """By how many samples a lane is short of each class, int64 [K]; arguments as above."""
        return np.maximum(wanted(len(self.labels), samples, turn) - self._available(positions), 0)

    def _available(self, positions: slice) -> Counts:
        return np.bincount(self._classes[positions], minlength=len(self.labels))


def quotas(available: Counts, samples: int, turn: int) -> Counts:
    """Samples that a lane takes of each class in one epoch, int64 [K]; their sum is `samples`.

    `wanted`, but a class that is short is made up for by classes of the same lane that have samples left, the least
    taken first.

    Args:
        available: samples of each class in the lane, int64 [K].
        samples: how many to take; the lane has as many.
        turn: number of the lane's turn.
    """
    assert 0 <= samples <= available.sum(), (samples, available)
    taken = np.minimum(wanted(len(available), samples, turn), available)
    # Up to one level, the highest that does not take too many; then one more each, beginning with another class at each
    # turn, so that none is always the first to make up.
    low, high = 0, samples
    while low < high:
        level = (low + high + 1) // 2
        low, high = (level, high) if _raised(taken, available, level).sum() <= samples else (low, level - 1)
    taken = _raised(taken, available, low)
    able = np.flatnonzero((taken <= low) & (taken < available))
    missing = samples - int(taken.sum())
    if missing:
        taken[np.roll(able, -(turn % len(able)))[:missing]] += 1
    return taken


def _raised(taken: Counts, available: Counts, level: int) -> Counts:
    return np.maximum(taken, np.minimum(available, level))


def wanted(classes: int, samples: int, turn: int) -> Counts:
    """Quotas of a lane that is short of nothing, int64 [classes]: equal to within one.

    What does not divide evenly is dealt out like cards, each turn going on where the last one stopped: so the totals
    over any turns that follow one another are equal to within one, too.
    """
    each, rest = divmod(samples, classes)
    dealt = np.full(classes, each, dtype=np.int64)
    dealt[(turn * rest + np.arange(rest)) % classes] += 1
    return dealt
