"""Scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels that come with the package, so no download."""

from pathlib import Path

import numpy as np

from shards.draws import Stream, permutation
from shards.errors import InputError
from shards.readers import png
from shards.readers.record import Record, Source

SPLITS = ("train", "test")
SPLIT_SEED = 1797  # the split is part of the dataset: no seed of the user's moves an image from one side to the other


def read(root: Path | None, split: str | None) -> Source:
    """Read one split (`train`: 1,437 images, the default; `test`: 360), stratified by class; labels are clean.

    Grey values 0..16 are scaled to 0..255. Source: `sklearn.datasets.load_digits` (UCI optical recognition of
    handwritten digits, its test half). Raises InputError on a root or an unknown split.
    """
    if root is not None:
        raise InputError(f"--root {root}: the digits come with scikit-learn; leave --root out")
    split = split or "train"
    if split not in SPLITS:
        raise InputError(f"--split {split}: the digits have the splits {' and '.join(SPLITS)}")
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    # Every fifth image of the class-sorted, shuffled list: each class gives a fifth, and the sizes come out exact.
    shuffled = permutation(len(labels), SPLIT_SEED, Stream.SPLIT)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    in_test = np.zeros(len(labels), dtype=bool)
    in_test[by_class[::5]] = True
    records = [
        Record(f"{labels[i]}/{i:04d}.png", "png", int(labels[i]), int(labels[i]), png.encode(images[i]))
        for i in np.flatnonzero(in_test == (split == "test"))
    ]
    records.sort()
    classes = tuple(str(digit) for digit in range(10))
    return Source("digits", split, classes, records, options={"split_seed": SPLIT_SEED})
