"""Synthetic label noise: its kinds, its text form, what the manifest records of it."""

import difflib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards import instance, transitions
from shards.errors import InputError
from shards.progress import Progress
from shards.readers.record import Source, first
from shards.transitions import Matrix, read_matrix

# kind -> what its rate means, as the manifest says it.
KINDS = {
    "symmetric": "excluding the true class",
    "symmetric-all": "including the true class",
    "asymmetric": "of each class that has a similar one, to that",
    "pair": "of each class, to the next",
    "matrix": "counts of each class by largest remainder",
    "instance": "mean of the images' own rates before truncation; Xia et al. 2020, algorithm 2, on 32x32 pixels",
}


@dataclass(frozen=True)
class Noise:
    """Which labels to change, and how: one of KINDS, with a rate in [0, 1), or with a matrix for `matrix`.

    Published figures of symmetric noise use two conventions. `symmetric` draws from the *other* classes, so the rate is
    the share of wrong labels. `symmetric-all` draws from all K classes, so only rate * (K - 1) / K become wrong.
    """

    kind: str
    rate: float | None = None
    matrix: Matrix | None = None

    @property
    def text(self) -> str:
        """The text form; equal for equal noise, and without a path."""
        return _text(self.kind, self.rate, self.matrix.sha256 if self.matrix else None)

    def record(self, seed: int, before: NDArray[np.int32], after: NDArray[np.int32]) -> dict[str, Any]:
        """Return what the manifest says of this noise; `before` and `after` are the labels [N]."""
        flipped = int(np.count_nonzero(before != after))
        return {
            "kind": self.kind,
            **({"sha256": self.matrix.sha256} if self.matrix else {"rate": self.rate}),
            "seed": seed,
            "convention": KINDS[self.kind],
            "flipped": flipped,
            "realised": flipped / len(before),
        }


def recorded(record: dict[str, Any]) -> str:
    """Return the text form of the noise that a manifest records."""
    return _text(record["kind"], record.get("rate"), record.get("sha256"))


def parse(text: str) -> Noise:
    """Read `KIND:RATE`, for example `symmetric:0.4`, or `matrix:FILE`.

    Raises InputError on an unknown kind, a rate outside [0, 1), or a file that holds no matrix.
    """
    kind, _, amount = text.partition(":")
    if not kind:
        raise InputError(f"noise {text!r}: no kind; write one of {', '.join(KINDS)}, as in '{_example('symmetric')}'")
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.0)[0]
        raise InputError(
            f"noise {text!r}: unknown kind {kind!r}; did you mean {near!r}, as in '{_example(near)}'? "
            f"The kinds are {', '.join(KINDS)}"
        )
    if kind == "matrix":
        if not amount:
            raise InputError(f"noise {text!r}: no file; write its name, as in '{_example(kind)}'")
        return Noise(kind, matrix=read_matrix(amount, f"noise '{text}'"))
    try:
        rate = float(amount)
    except ValueError:
        raise InputError(
            f"noise {text!r}: {amount!r} is not a number; write a rate, as in '{_example(kind)}'"
        ) from None
    if not 0 <= rate < 1:
        raise InputError(f"noise {text!r}: the rate must be at least 0 and below 1, as in '{_example(kind)}'")
    if kind == "instance" and rate == 0:
        raise InputError(
            f"noise {text!r}: the images' own rates scatter around this one, and would be 0.08 on average; "
            "leave the noise out for none"
        )
    return Noise(kind, rate)


def apply(noise: Noise, source: Source, seed: int, progress: Progress) -> NDArray[np.int32]:
    """Return noisy labels of the records, int32 [N], in their order. `instance` decodes every image, which takes time.

    The given labels count as true. Raises InputError where some are known to be wrong, where there is no other class,
    or where the noise does not fit the classes.
    """
    labels = np.array([record.label for record in source.records], dtype=np.int32)
    _refuse_wrong_labels(noise, source, labels)
    num_classes = len(source.classes)
    if num_classes < 2:
        raise InputError(f"--noise {noise.kind}: the dataset has one class only, so no label can be wrong")
    if noise.matrix is not None:
        if len(noise.matrix.values) != num_classes:
            raise InputError(
                f"{noise.matrix.where}: {len(noise.matrix.values)} rows, but the dataset has {num_classes:,} classes; "
                f"write a row and a column for each, in this order: {first(source.classes)}"
            )
        return transitions.redraw(labels, num_classes, noise.matrix.counts, seed)
    assert noise.rate is not None, "every other kind has a rate"
    if noise.kind == "instance":
        noisy, bad = instance.flip(source, labels, noise.rate, seed, progress)
        if bad:
            progress.say(f"{source.where}: {bad:,} images cannot be decoded; they keep their labels")
        return noisy
    if noise.kind in ("asymmetric", "pair"):
        pair = noise.kind == "pair"
        targets = transitions.following(num_classes) if pair else transitions.similar(source.classes)
        return transitions.flip(labels, targets, noise.rate, seed)
    assert noise.kind in ("symmetric", "symmetric-all")
    return transitions.symmetric(labels, num_classes, noise.rate, seed, noise.kind == "symmetric-all")


def _refuse_wrong_labels(noise: Noise, source: Source, labels: NDArray[np.int32]) -> None:
    clean = np.array([record.clean_label for record in source.records], dtype=np.int32)
    known = clean >= 0
    wrong = np.flatnonzero(known & (clean != labels))
    if len(wrong):
        names = first([source.records[i].key for i in wrong[:6].tolist()])
        raise InputError(
            f"--noise {noise.kind}: {len(wrong):,} of {np.count_nonzero(known):,} labels with a known true class are "
            f"wrong already ({names}); noise on top of real noise has no rate, so leave --noise out"
        )


def _example(kind: str) -> str:
    return "matrix:confusion.csv" if kind == "matrix" else f"{kind}:0.4"


def _text(kind: str, rate: float | None, sha256: str | None) -> str:
    return f"{kind}:{rate if sha256 is None else sha256[:16]}"
