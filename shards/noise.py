"""Synthetic label noise: seeded, exact in number, recorded in the manifest."""

import difflib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.draws import Stream, permutation, words
from shards.errors import InputError

KINDS = ("symmetric",)


@dataclass(frozen=True)
class Noise:
    """Which labels to change, and how.

    Symmetric noise gives exactly round(rate * N) samples a class drawn uniformly from the *other* classes. The
    published figures use two conventions: drawing from all classes, at rate r over K classes, changes only
    r * (K - 1) / K of the labels. Ours excludes the true class, so the rate is the share of wrong labels.
    """

    kind: str
    rate: float

    def record(self, seed: int, before: NDArray[np.int32], after: NDArray[np.int32]) -> dict[str, Any]:
        """Return what the manifest says of this noise; `before` and `after` are the labels [N]."""
        flipped = int(np.count_nonzero(before != after))
        return {
            "kind": self.kind,
            "rate": self.rate,
            "seed": seed,
            "convention": "excluding the true class",
            "flipped": flipped,
            "realised": flipped / len(before),
        }


def parse(text: str) -> Noise:
    """Read `KIND:RATE`, for example `symmetric:0.4`.

    Raises InputError on an unknown kind or a rate outside [0, 1).
    """
    kind, _, rate_text = text.partition(":")
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.0)[0]
        raise InputError(f"noise {text!r}: unknown kind {kind!r}; did you mean {near!r}, as in '{near}:0.4'?")
    try:
        rate = float(rate_text)
    except ValueError:
        raise InputError(f"noise {text!r}: {rate_text!r} is not a number; write a rate, as in '{kind}:0.4'") from None
    if not 0 <= rate < 1:
        raise InputError(f"noise {text!r}: the rate must be at least 0 and below 1, as in '{kind}:0.4'")
    return Noise(kind, rate)


def apply(noise: Noise, labels: NDArray[np.int32], num_classes: int, seed: int) -> NDArray[np.int32]:
    """Return a noisy copy of `labels`.

    labels: int32 [N], in the reader's order, each in [0, num_classes). Exactly round(rate * N) of them get another
    class (rounding half to even). The modulo's bias is below num_classes / 2**64.

    Raises InputError where there is no other class to draw.
    """
    if num_classes < 2:
        raise InputError(f"noise '{noise.kind}:{noise.rate}': the dataset has one class only, so no label can be wrong")
    count = round(noise.rate * len(labels))
    chosen = permutation(len(labels), seed, Stream.NOISE_CHOICE)[:count]
    shift = 1 + words(count, seed, Stream.NOISE_CLASS) % np.uint64(num_classes - 1)
    noisy = labels.copy()
    noisy[chosen] = (labels[chosen] + shift.astype(np.int64)) % num_classes
    return noisy
