"""ROOT/class/**/image: the folder names are the classes, in sorted order or in that of a list."""

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from shards.errors import InputError
from shards.readers import classes as class_names
from shards.readers import lists
from shards.readers.record import EXTENSIONS, Record, Source, counted, first

# fmt: off
OTHER_IMAGES = {
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe",
    ".jxl", ".pbm", ".pgm", ".pnm", ".ppm", ".tga", ".tif", ".tiff",
}
# fmt: on
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}
_ALIKE = 0.45  # val and validation are, valid and train are not


def read(root: Path | None, split: str | None, classes: str | None = None) -> Source:
    """List the images of a folder of class folders; their labels are the folders, clean labels are unknown.

    Where the user names a split and ROOT/split is a folder, that folder is read, so `--root clothing --split train`
    and `--root clothing/train` read the same images; else ROOT is read and the split (`train` unless named) is only a
    name. Keys are paths below the folder that is read. Files ending in .jpg, .jpeg, .png or .webp (any case) count,
    at any depth; links are followed; hidden files and folders are passed over; other files are counted and said.

    classes: a file that names the classes, one a line, so that splits agree of which one lacks a class.

    Raises InputError where there is nothing to read, a class is empty or not in the list, ROOT is the folder above or
    below the right one, or images have a format that the shards cannot hold.
    """
    root = lists.folder("--root", root, "one folder per class")
    names = class_names.named(Path(classes)) if classes is not None else None
    if split and (root / split).is_dir():
        root = root / split
    elif split:
        _refuse_other_splits(root, split)
    return _read(root, split, names, classes)


def _read(root: Path, split: str | None, names: Sequence[str] | None, file: str | None) -> Source:
    folders, loose = _entries(root)
    if not folders:
        raise InputError(f"--root {root}: {_no_classes(root, loose)}")
    if SPLIT_NAMES.issuperset(name.lower() for name in folders):
        raise InputError(
            f"--root {root}: its folders ({', '.join(folders)}) are splits, not classes; read one with "
            f"{_choice(split or 'train', folders)}"
        )
    if len(folders) == 1:
        _refuse_a_wrapping(root, folders[0])
    labels = {name: label for label, name in enumerate(names or folders)}
    if unknown := [name for name in folders if name not in labels]:
        raise InputError(
            f"--root {root}: no class of --classes {file}: {first(unknown)}; name it there, or move its folder away"
        )
    records: list[Record] = []
    refused: list[str] = []
    empty: list[str] = []
    passed_over = [name for name in loose if not lists.extension(name)]
    outside = [name for name in loose if lists.extension(name)]
    for name in folders:
        before = len(records)
        for key in _files(os.path.join(root, name), name):
            suffix = os.path.splitext(key)[1].lower()
            if extension := EXTENSIONS.get(suffix):
                records.append(Record(key, extension, labels[name]))
            else:
                (refused if suffix in OTHER_IMAGES else passed_over).append(key)
        if len(records) == before:
            empty.append(name)
    if refused:
        raise InputError(
            f"--root {root}: {len(refused):,} images are neither JPEG, PNG nor WebP ({first(sorted(refused))}); "
            "convert them to one of these, or move them away"
        )
    if not records:
        raise InputError(
            f"--root {root}: no images (.jpg .jpeg .png .webp) in its {counted(len(folders), 'class folder')}"
        )
    if empty and names is None:
        raise InputError(
            f"--root {root}: no image in {counted(len(empty), 'class folder')} ({first(empty)}); fill or remove them, "
            "or name all classes with --classes FILE"
        )
    records.sort()
    notes = []
    if passed_over:
        notes.append(
            f"passed over {counted(len(passed_over), 'file')} other than images ({first(sorted(passed_over))})"
        )
    if outside:
        notes.append(
            f"passed over {counted(len(outside), 'image')} outside the class folders ({first(outside)}); where the "
            f"folder is one class, give --root {_above(root)}"
        )
    known = tuple(names or folders)
    notes += class_names.without_images(known, [record.label for record in records])
    count = len(passed_over) + len(outside)
    return Source("imagefolder", split or "train", known, records, root, passed_over=count, notes=tuple(notes))


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the files in a folder, sorted, without hidden ones."""
    with os.scandir(folder) as listing:
        entries = sorted((e.name, e.is_dir()) for e in listing if not e.name.startswith("."))
    return [name for name, is_dir in entries if is_dir], [name for name, is_dir in entries if not is_dir]


def _refuse_other_splits(root: Path, split: str) -> None:
    """Raise InputError where ROOT holds splits, but not this one: their folders would become classes."""
    folders = _entries(root)[0]
    if inner := [name for name in folders if (root / name / split).is_dir()]:
        raise InputError(
            f"--split {split}: --root {root} has no such folder, but {first(inner)} has one; give --root "
            f"{root / inner[0]}"
        )
    named = [name for name in folders if name.lower() in SPLIT_NAMES]
    # A class may bear such a name (a train on rails); unlike a split it holds images, not folders.
    if splits := [name for name in named if len(named) > 1 or _entries(root / name)[0]]:
        raise InputError(
            f"--split {split}: --root {root} has no such folder, but {', '.join(splits)}, which are splits; read one "
            f"with {_choice(split, splits)}"
        )


def _choice(split: str, there: Sequence[str]) -> str:
    """Return what to type for the folder that is most like `split`; none is offered where none is like it."""
    lower = {name.lower(): name for name in there}
    near = difflib.get_close_matches(split.lower(), lower, n=1, cutoff=_ALIKE)
    return f"--split {lower[near[0]]}" if near else "--split NAME"


def _refuse_a_wrapping(root: Path, name: str) -> None:
    """Raise InputError where the one folder of ROOT holds folders and no image: ROOT is one level too high."""
    folders, files = _entries(root / name)
    if folders and not any(map(lists.extension, files)):
        raise InputError(
            f"--root {root}: its one folder, {name}, holds folders ({first(folders)}) and no image, so it is no class; "
            f"give --root {root / name}"
        )


def _no_classes(root: Path, files: Sequence[str]) -> str:
    images = sum(lists.extension(name) is not None for name in files)
    where = "images belong in ROOT/class/, one folder per class"
    if images and root.absolute().name.lower() not in SPLIT_NAMES:
        return f"no class folders, but {counted(images, 'image')}; if this is one class, give --root {_above(root)}"
    return f"no class folders; {where}"


def _above(root: Path) -> Path:
    return root.parent if root.name not in ("", "..") else root.absolute().parent


def _files(folder: str, relative: str) -> Iterator[str]:
    """Yield the relative path of every file below `folder`, in no order."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{relative}/{entry.name}"
            if not entry.is_dir():
                yield path
                continue
            if entry.is_symlink() and Path(folder).resolve().is_relative_to(Path(entry.path).resolve()):
                raise InputError(f"{entry.path}: a link to a folder that contains it; remove the link")
            yield from _files(entry.path, path)
