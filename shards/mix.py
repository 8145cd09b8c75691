"""How evenly the classes are spread over the lanes of a training run: what sorted tars get wrong."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

LANES = 8  # where nobody says otherwise: the default of data.lanes

_DRAWS, _NUMBERS = 50, 2_000_000  # shuffles to compare with, and random numbers for all of them: half a second
_TIMES, _MORE = 1.5, 0.05  # a lane differs from the whole by more than chance has it: by this factor and this share


@dataclass(frozen=True)
class Mix:
    """The classes of the lane that differs most from the whole, when the samples are cut into lanes.

    distance: total variation between the class shares of that lane and of the whole, 0 to 1: the share of the lane's
    samples that would have to be of another class. chance: the same figure of a fair shuffle, its mean over some. lane
    counts from 0. label: the class whose share in the lane is most above its share in the whole; in_lane and in_whole
    are these shares.
    """

    lanes: int
    lane: int
    distance: float
    chance: float
    label: int
    in_lane: float
    in_whole: float

    @classmethod
    def of(cls, labels: NDArray[np.integer], num_classes: int, lanes: int = LANES) -> Self:
        """Cut N >= 1 samples, labels [N] in the order of their ids, as training does (fewer lanes for fewer samples).

        The figures of chance are drawn, with a seed of their own, so equal labels give equal figures.
        """
        lanes = min(lanes, len(labels))
        whole = np.bincount(labels, minlength=num_classes)
        borders = [lane * len(labels) // lanes for lane in range(lanes + 1)]
        counts = np.stack([np.bincount(labels[a:b], minlength=num_classes) for a, b in itertools.pairwise(borders)])
        distances = _distances(counts, whole)
        lane = int(distances.argmax())
        in_lane, in_whole = counts[lane] / counts[lane].sum(), whole / whole.sum()
        label = int((in_lane - in_whole).argmax())
        return cls(
            lanes,
            lane,
            float(distances[lane]),
            _chance(whole, counts.sum(axis=1)),
            label,
            float(in_lane[label]),
            float(in_whole[label]),
        )

    @property
    def bad(self) -> bool:
        """Whether a lane differs from the whole far more than in a fair shuffle."""
        return self.distance > max(_TIMES * self.chance, self.chance + _MORE)

    def line(self) -> str:
        """Return the two figures in words."""
        return (
            f"of {self.lanes} lanes, the classes of the worst differ from the whole by {self.distance:.1%}"
            f" (a fair shuffle: {self.chance:.1%})"
        )

    def warning(self, classes: Sequence[str]) -> str:
        """Return a line that says what is wrong where `bad`; `classes` are the names."""
        return (
            f"the samples are not shuffled: of {self.lanes} lanes, as training cuts them, lane {self.lane} has other"
            f" classes than the whole in {self.distance:.1%} of its samples (in a fair shuffle {self.chance:.1%});"
            f" {self.in_lane:.1%} of it are {classes[self.label]!r}, {self.in_whole:.1%} of the whole"
        )


def _distances(counts: NDArray[np.integer], whole: NDArray[np.integer]) -> NDArray[np.float64]:
    """Total variation between each row of counts [L, K] and the whole [K], float64 [L]."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    distances: NDArray[np.float64] = np.abs(shares - whole / whole.sum()).sum(axis=1) / 2
    return distances


def _chance(whole: NDArray[np.integer], sizes: NDArray[np.integer]) -> float:
    """Mean distance of the worst lane in fair shuffles of a whole [K] into lanes of `sizes` [L]."""
    whole = whole[whole > 0]
    rng = np.random.default_rng(0)
    draws = max(4, min(_DRAWS, _NUMBERS // (len(whole) * len(sizes))))
    worst = []
    for _ in range(draws):
        left, counts = whole.copy(), []
        for size in sizes.tolist():
            counts.append(rng.multivariate_hypergeometric(left, size, method="marginals"))
            left -= counts[-1]
        worst.append(_distances(np.stack(counts), whole).max())
    return float(np.mean(worst))
