"""Noise that depends on the class alone: how many samples of each class get which label."""

import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.draws import Stream, permutation, words
from shards.errors import InputError
from shards.readers.record import first

SUM_TOLERANCE = 1e-3  # of a row; matrices are published with three or four decimals

# After Patrini et al., "Making Deep Neural Networks Robust to Label Noise" (CVPR 2017), as is CIFAR-100 below.
CIFAR10 = {
    **{name: name for name in ("airplane", "automobile", "frog", "horse", "ship")},
    **{"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"},
}

# CIFAR-100's 20 superclasses, each in alphabetical order. Code that is widely used takes five neighbours in label
# order instead, which are not alike; the paper says superclass.
SUPERCLASSES = tuple(
    tuple(names.split())
    for names in (
        "beaver dolphin otter seal whale",
        "aquarium_fish flatfish ray shark trout",
        "orchid poppy rose sunflower tulip",
        "bottle bowl can cup plate",
        "apple mushroom orange pear sweet_pepper",
        "clock keyboard lamp telephone television",
        "bed chair couch table wardrobe",
        "bee beetle butterfly caterpillar cockroach",
        "bear leopard lion tiger wolf",
        "bridge castle house road skyscraper",
        "cloud forest mountain plain sea",
        "camel cattle chimpanzee elephant kangaroo",
        "fox porcupine possum raccoon skunk",
        "crab lobster snail spider worm",
        "baby boy girl man woman",
        "crocodile dinosaur lizard snake turtle",
        "hamster mouse rabbit shrew squirrel",
        "maple_tree oak_tree palm_tree pine_tree willow_tree",
        "bicycle bus motorcycle pickup_truck train",
        "lawn_mower rocket streetcar tank tractor",
    )
)
CIFAR100 = {name: group[(i + 1) % 5] for group in SUPERCLASSES for i, name in enumerate(group)}


def symmetric(
    labels: NDArray[np.int32], num_classes: int, rate: float, seed: int, true_class_too: bool
) -> NDArray[np.int32]:
    """Give exactly round(rate * N) of `labels` (int32 [N]) a uniformly drawn class (rounding half to even).

    true_class_too: draw from all classes, so that some stay right; else from the others. The modulo's bias is below
    num_classes / 2**64.
    """
    count = round(rate * len(labels))
    chosen = permutation(len(labels), seed, Stream.NOISE_CHOICE)[:count]
    drawn = words(count, seed, Stream.NOISE_CLASS)
    noisy = labels.copy()
    if true_class_too:
        noisy[chosen] = drawn % np.uint64(num_classes)
    else:
        shift = 1 + drawn % np.uint64(num_classes - 1)
        noisy[chosen] = (labels[chosen] + shift.astype(np.int64)) % num_classes
    return noisy


def following(num_classes: int) -> NDArray[np.int64]:
    """Return the class after each class, int64 [K]; the first follows the last."""
    return (np.arange(num_classes) + 1) % num_classes


def similar(classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the class that each class is taken for in CIFAR-10 or CIFAR-100, int64 [K]; itself where there is none.

    Which of the two: by the names of the classes, in any order. Raises InputError for other names.
    """
    for table in (CIFAR10, CIFAR100):
        if set(classes) == set(table):
            return np.array([classes.index(table[name]) for name in classes], dtype=np.int64)
    raise InputError(
        f"--noise asymmetric: the classes ({first(classes)}) are not those of CIFAR-10 or CIFAR-100, whose maps alone "
        "are published; use pair:RATE, or write your own map as matrix:FILE"
    )


def flip(labels: NDArray[np.int32], targets: NDArray[np.int64], rate: float, seed: int) -> NDArray[np.int32]:
    """Give `targets[k]` to exactly round(rate * n_k) of the n_k samples of class k (rounding half to even).

    labels: int32 [N]. targets: int64 [K]; a class that is its own target keeps its labels.
    """

    def counts(label: int, size: int) -> NDArray[np.int64]:
        row = np.zeros(len(targets), dtype=np.int64)
        row[label] = size
        flipped = round(rate * size)
        row[label] -= flipped
        row[targets[label]] += flipped
        return row

    return redraw(labels, len(targets), counts, seed)


def redraw(
    labels: NDArray[np.int32], num_classes: int, counts: Callable[[int, int], NDArray[np.int64]], seed: int
) -> NDArray[np.int32]:
    """Give the samples of each class new labels, `counts(class, its samples)` of each label, to samples at random.

    labels: int32 [N]. counts returns int64 [K], which sums to the number of samples.
    """
    shuffled = permutation(len(labels), seed, Stream.NOISE_CHOICE)
    grouped = shuffled[np.argsort(labels[shuffled], kind="stable")]
    ends = np.cumsum(np.bincount(labels, minlength=num_classes))
    noisy = labels.copy()
    for label, members in enumerate(np.split(grouped, ends[:-1])):
        noisy[members] = np.repeat(np.arange(num_classes), counts(label, len(members)))
    return noisy


@dataclass(frozen=True, eq=False)
class Matrix:
    """Row k: the shares of class k's samples that get each label, float64 [K, K]; `where` names it in messages."""

    values: NDArray[np.float64]
    where: str

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the numbers as little-endian float64, row after row: not of the file, nor of its layout."""
        return hashlib.sha256(self.values.astype("<f8").tobytes()).hexdigest()

    def counts(self, label: int, size: int) -> NDArray[np.int64]:
        """Return how many of `size` samples of class `label` get each label, int64 [K], by largest remainder.

        Each count is less than one sample off its share; of equal remainders the lower classes come first.
        """
        quotas = self.values[label] / self.values[label].sum() * size
        whole = np.floor(quotas).astype(np.int64)
        whole[np.argsort(whole - quotas, kind="stable")[: size - whole.sum()]] += 1
        return whole


def read_matrix(path: str, where: str) -> Matrix:
    """Read K lines of K numbers separated by commas, or the same as a JSON list of lists; `where` names it in messages.

    Raises InputError, naming the row, where it is no square matrix of shares with rows that sum to 1 within 1e-3.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InputError(f"{where}: cannot read {path} ({reason}); name a file of K rows of K numbers") from None
    rows = _json_rows(text, where) if text.lstrip().startswith("[") else _csv_rows(text, where)
    if not rows:
        raise InputError(f"{where}: the file is empty; write K rows of K numbers, one row per true class")
    values = np.zeros((len(rows), len(rows)))
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows):
            raise InputError(
                f"{where}: row {number} has {len(row)} numbers, but there are {len(rows)} rows; write K rows of K "
                "numbers, without a header"
            )
        values[number - 1] = [_share(cell, number, where) for cell in row]
        total = values[number - 1].sum()
        if abs(total - 1) > SUM_TOLERANCE:
            raise InputError(f"{where}: row {number} sums to {total:g}; each row must sum to 1, one row per true class")
    return Matrix(values, where)


def _csv_rows(text: str, where: str) -> list[list[Any]]:
    try:
        rows = [row for row in csv.reader(text.splitlines()) if row]
    except csv.Error as error:
        raise InputError(f"{where}: no numbers can be read ({error}); write K rows of K numbers") from None
    for mark, name in ((";", "semicolons"), ("\t", "tabs"), (" ", "spaces")):
        if len(rows) > 1 and len(",".join(rows[0]).strip().split(mark)) == len(rows) != len(rows[0]):
            raise InputError(f"{where}: {name} between its numbers; write commas between them, and points in them")
    return rows


def _json_rows(text: str, where: str) -> list[list[Any]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: no JSON can be read ({error}); write a list of K lists of K numbers") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, list):
            raise InputError(f"{where}: row {number} is no list; write a list of K lists of K numbers")
    return list(rows)


def _share(cell: Any, number: int, where: str) -> float:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        raise InputError(f"{where}: row {number}: {cell!r} is not a number; write numbers only, no header") from None
    if not 0 <= value <= 1:
        raise InputError(f"{where}: row {number}: {value:g} is no share; write numbers from 0 to 1")
    return value
