"""CIFAR-10 as JPEG files, with human labels: lists of images for `alasca shard csv`, drawn by class."""

import csv
import random
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from shards.errors import InputError

HUMAN, TRUE = "worst", "clean"


class Image(NamedTuple):
    """A training image: its path, its true class (0 to 9), and the worst of three people's labels."""

    path: str
    clean: int
    human: int


def unpack(archive: Path, folder: Path) -> Path:
    """Write `train/CLASS/*.jpg` and `test/CLASS/*.jpg` below `folder`, unless all of them are there; return it."""
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [m for m in packed.infolist() if m.filename.endswith(".jpg")]
            if sum(1 for _ in folder.rglob("*.jpg")) != len(members):
                packed.extractall(folder, members)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(
            f"--images {archive}: {error}; it must be a zip of train/CLASS/*.jpg and test/CLASS/*.jpg"
        ) from None
    return folder


def read(labels: Path) -> list[Image]:
    """All training images, in the order of the file.

    Raises:
        InputError: the file cannot be read or lacks a column.
    """
    try:
        with labels.open(newline="", encoding="utf-8") as file:
            return [Image(row["path"], int(row[TRUE]), int(row[HUMAN])) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"--labels {labels}: {error}; columns path, {TRUE} and {HUMAN} are needed") from None


def drawn(images: Iterable[Image], of_each: int | None, seed: int = 0) -> list[Image]:
    """So many images of each true class, drawn without replacement; None: all of them."""
    if of_each is None:
        return list(images)
    by_class: dict[int, list[Image]] = {}
    for image in images:
        by_class.setdefault(image.clean, []).append(image)
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
    classes = sorted(path.name for path in (folder / "test").iterdir())
    return [
        (path.relative_to(folder).as_posix(), number, number)
        for number, name in enumerate(classes)
        for path in sorted((folder / "test" / name).iterdir())[:of_each]
    ]
