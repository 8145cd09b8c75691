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
    SUBSET = 5
    NOISE_RATE = 6
    NOISE_PROJECTION = 7


def words(count: int, seed: int, stream: Stream, skip: int = 0) -> NDArray[np.uint64]:
    """Return `count` uniform 64-bit words, a pure function of (seed, stream); `seed` in [0, 2**64).

    skip: how many words of the stream to leave out before them, a multiple of 4 (Philox makes four at a time).
    """
    assert skip % 4 == 0, "whole blocks"
    key = np.array([seed, stream], dtype=np.uint64)
    return np.random.Philox(key=key, counter=skip // 4).random_raw(count)


def uniform(count: int, seed: int, stream: Stream, skip: int = 0) -> NDArray[np.float64]:
    """Return numbers uniform in [0, 1), float64 [count]: the upper 53 bits of `words`."""
    return (words(count, seed, stream, skip) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(count: int, seed: int, stream: Stream, skip: int = 0) -> NDArray[np.float64]:
    """Return standard normal numbers, float64 [count]: Box and Muller's transform of each pair of `uniform`.

    The same on every machine but for the last bits, which are those of its logarithm, sine and cosine.
    """
    pairs = uniform(count + count % 2, seed, stream, skip).reshape(-1, 2)
    radius = np.sqrt(-2 * np.log(1 - pairs[:, 0]))
    angle = 2 * np.pi * pairs[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:count]


def permutation(count: int, seed: int, stream: Stream) -> NDArray[np.int64]:
    """Return a permutation of range(count), int64 [count]."""
    return np.argsort(words(count, seed, stream), kind="stable")
