"""Seeded draws that stay the same across numpy versions and machines.

numpy may change what `Generator.permutation` or `.integers` return for a seed, but not the raw output of a bit
generator (its compatibility policy, NEP 19). So everything random in a dataset comes from raw Philox words.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Stream(IntEnum):
    """What a seed is used for; two uses of one seed never share words."""

    ORDER = 1
    NOISE_CHOICE = 2
    NOISE_CLASS = 3
    SPLIT = 4


def words(count: int, seed: int, stream: Stream) -> NDArray[np.uint64]:
    """Return `count` uniform 64-bit words, a pure function of (seed, stream); `seed` in [0, 2**64)."""
    return np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)).random_raw(count)


def permutation(count: int, seed: int, stream: Stream) -> NDArray[np.int64]:
    """Return a permutation of range(count), int64 [count]."""
    return np.argsort(words(count, seed, stream), kind="stable")
