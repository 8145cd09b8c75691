"""Label sets that people gave to images somebody else published: CIFAR-10N and CIFAR-100N."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.readers import lists, pickles

CLEAN = "clean_label"


def load(file: Path, name: str, clean: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Return the label set `name` of a file that holds arrays by name, in the order of the images: int64 [N].

    file: .pt or .npy (a dictionary, read as `pickles.load` does) or .csv (a header with the names, a line an image).
    clean: the images' own labels, int64 [N]; the file's `clean_label` must equal them, or it is of other images or of
    another order. Raises InputError where it does not, or a set is missing, of another length or beyond the classes.
    """
    suffix = file.suffix.lower()
    if suffix not in (".pt", ".npy", ".csv"):
        raise InputError(f"--labels {file}: must end in .pt, .npy or .csv")
    sets = _csv(file) if suffix == ".csv" else pickles.load(file)
    for wanted in (CLEAN, name):
        if wanted not in sets:
            raise InputError(f"{file}: no label set {wanted!r}; it holds {', '.join(sets) or 'nothing'}")
    there = _labels(file, CLEAN, sets[CLEAN], len(clean), num_classes)
    different = np.flatnonzero(there != clean)
    if len(different):
        at = different[0]
        raise InputError(
            f"{file}: its {CLEAN} is not the batches' label at {len(different):,} of {len(clean):,} images (first "
            f"image {at:,}: {there[at]} here, {clean[at]} there), so it is of other images or in another order"
        )
    return _labels(file, name, sets[name], len(clean), num_classes)


def _labels(file: Path, name: str, values: Any, count: int, num_classes: int) -> NDArray[np.int64]:
    if isinstance(values, Sequence) and all(type(value) is int for value in values):
        try:
            values = np.array(values, dtype=np.int64)
        except OverflowError:
            values = None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iu" or values.ndim != 1:
        raise InputError(f"{file}: {name} is no list of integers, one for each image")
    if len(values) != count:
        raise InputError(
            f"{file}: {name} has {len(values):,} labels for {count:,} images; bring the file of this dataset"
        )
    wrong = np.flatnonzero((values < 0) | (values >= num_classes))
    if len(wrong):
        raise InputError(
            f"{file}: {name} of image {wrong[0]:,} is {values[wrong[0]]}, none of 0 to {num_classes - 1}; bring the "
            "file of this dataset"
        )
    return values.astype(np.int64)


def _csv(file: Path) -> dict[str, list[int]]:
    try:
        with open(file, encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(lists.ends(file, text), strict=True)
            names = [name.strip() for name in next(reader, [])]
            columns: list[list[int]] = [[] for _ in names]
            for fields in reader:
                where = f"{file} line {reader.line_num:,}"
                if len(fields) != len(names):
                    raise InputError(f"{where}: {len(fields)} columns, {len(names)} in the header; mend the line")
                for name, column, field in zip(names, columns, fields, strict=True):
                    if not (field.isascii() and field.isdigit() and len(field) < 10):
                        raise InputError(f"{where}: {name} is {field[:40]!r}, no label (an integer from 0)")
                    column.append(int(field))
    except OSError as error:
        raise InputError(f"--labels {file}: cannot be read ({error.strerror})") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{file}: damaged ({error})") from None
    return dict(zip(names, columns, strict=True))
