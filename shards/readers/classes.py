"""Class names and the labels that stand for them in lists: names or integers."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from shards.errors import InputError
from shards.names import check_classes
from shards.readers import lists
from shards.readers.record import first

_INTEGER = re.compile(r"0|-?[1-9][0-9]*", re.ASCII)  # 01 is a name: one number has one spelling
_MOST = 1_000_000  # classes that integers may imply: labels beyond are ids of something else


def named(file: Path) -> tuple[str, ...]:
    """Read one class name a line: line k, counted from 1, names class k - 1.

    Raises InputError where the file cannot be read, a line is empty, or a name stands twice or cannot be a class.
    """
    names: dict[str, int] = {}
    for number, name in lists.lines(file):
        if number != len(names) + 1:
            raise InputError(f"{file} line {len(names) + 1:,}: empty, but each line is a class; write its name there")
        if name in names:
            raise InputError(
                f"{file} line {number:,}: class {name!r} stands in line {names[name]:,} already; name it once"
            )
        try:
            check_classes([name])
        except InputError as error:
            raise InputError(f"{file} line {number:,}: {error}; write one class name a line") from None
        names[name] = number
    if not names:
        raise InputError(f"{file}: empty; write one class name a line")
    return tuple(names)


def resolve(places: Mapping[str, str], file: Path | None) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the class names, and the class that each label text stands for.

    places: label text -> where it first stands, for messages. file: names the classes (`named`); a label is then one of
    the names, or, where no name is a number, its number counted from 0. Without it the labels themselves do: where all
    are integers, the classes are "0" to the largest, else the distinct labels, sorted.

    Raises InputError for a label that is no class, and, where without a file all are numbers and some are integers, for
    one that is negative, far beyond any count of classes, or of another kind (1.5, nan, True).
    """
    names = named(file) if file is not None else _implied(places)
    ids = {name: label for label, name in enumerate(names)}
    if file is not None and not any(_INTEGER.fullmatch(name) for name in names):
        ids |= {str(label): label for label in range(len(names))}
    for text, place in places.items():
        if text not in ids:
            raise InputError(
                f"{place}: label {text!r:.40} is none of the {len(names):,} classes of {file}; mend it, or name it "
                "there"
            )
    return names, ids


def _implied(places: Mapping[str, str]) -> tuple[str, ...]:
    if not any(map(_INTEGER.fullmatch, places)) or not all(map(_is_number, places)):
        return tuple(sorted(places))
    for text, place in places.items():
        # By its length first: int() refuses thousands of digits.
        if not _INTEGER.fullmatch(text) or text[0] == "-" or len(text) > len(str(_MOST)) or int(text) >= _MOST:
            raise InputError(
                f"{place}: label {text:.40}: integers count the classes from 0; mend it, or name the classes with "
                "--classes FILE"
            )
    return tuple(map(str, range(max(map(int, places)) + 1)))


def _is_number(text: str) -> bool:
    """Whether a text is a number of any kind, as 7, 1.5, 1e3, nan or True are; 01 is a name."""
    if text.isdecimal() and text[0] == "0" and text != "0":
        return False
    try:
        float(text)
    except ValueError:
        return text.lower() in ("true", "false")
    return True


def without_images(names: Sequence[str], labels: ArrayLike) -> tuple[str, ...]:
    """Return a line for the user where classes have no image, as when labels count from 1; else nothing."""
    counts = np.bincount(labels, minlength=len(names))
    empty = [names[label] for label in np.flatnonzero(counts == 0).tolist()]
    return (f"{len(empty):,} of {len(names):,} classes have no image ({first(empty)})",) if empty else ()
