"""ROOT/class/**/image: the folder names are the classes, in sorted order."""

import os
from collections.abc import Iterator
from pathlib import Path

from shards.errors import InputError
from shards.readers.record import EXTENSIONS, Record, Source, first

# fmt: off
OTHER_IMAGES = {
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe",
    ".jxl", ".pbm", ".pgm", ".pnm", ".ppm", ".tga", ".tif", ".tiff",
}
# fmt: on
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}


def read(root: Path | None, split: str | None) -> Source:
    """List the images of a folder of class folders; their labels are the folders, clean labels are unknown.

    Where the user names a split and ROOT/split is a folder, that folder is read, so `--root clothing --split train`
    and `--root clothing/train` read the same images; else ROOT is read and the split (`train` unless named) is only a
    name. Keys are paths below the folder that is read. Files ending in .jpg, .jpeg, .png or .webp (any case) count,
    at any depth; links are followed; hidden files and folders are passed over; other files are counted and said.

    Raises InputError where there is nothing to read, a class is empty, ROOT holds splits instead of classes, or
    images have a format that the shards cannot hold.
    """
    if root is None:
        raise InputError("imagefolder needs --root FOLDER, the folder that holds one folder per class")
    if not root.is_dir():
        raise InputError(f"--root {root}: {'not a folder' if root.exists() else 'no such folder'}")
    if split and (root / split).is_dir():
        root = root / split
    try:
        return _read(root, split or "train")
    except OSError as error:
        raise InputError(f"--root {root}: cannot read {error.filename}: {error.strerror}") from None


def _read(root: Path, split: str) -> Source:
    with os.scandir(root) as listing:
        entries = sorted((e for e in listing if not e.name.startswith(".")), key=lambda e: e.name)
    classes = tuple(e.name for e in entries if e.is_dir())
    ignored = [e.name for e in entries if not e.is_dir()]
    if not classes:
        raise InputError(f"--root {root}: no class folders; images belong in ROOT/class/, one folder per class")
    if SPLIT_NAMES.issuperset(name.lower() for name in classes):
        raise InputError(
            f"--root {root}: its folders ({', '.join(classes)}) are splits, not classes; "
            f"read one with --root {root / classes[0]}, or --split {classes[0]}"
        )
    records: list[Record] = []
    refused: list[str] = []
    empty: list[str] = []
    for label, name in enumerate(classes):
        before = len(records)
        for key in _files(os.path.join(root, name), name):
            suffix = os.path.splitext(key)[1].lower()
            if extension := EXTENSIONS.get(suffix):
                records.append(Record(key, extension, label))
            else:
                (refused if suffix in OTHER_IMAGES else ignored).append(key)
        if len(records) == before:
            empty.append(name)
    if refused:
        raise InputError(
            f"--root {root}: {len(refused):,} images are neither JPEG, PNG nor WebP ({first(sorted(refused))}); "
            "convert them to one of these, or move them away"
        )
    if not records:
        raise InputError(f"--root {root}: no images (.jpg .jpeg .png .webp) in its {len(classes):,} class folders")
    if empty:
        raise InputError(
            f"--root {root}: {len(empty):,} class folders hold no image ({first(empty)}); fill or remove them"
        )
    records.sort()
    notes = (f"passed over {len(ignored):,} files that are no images ({first(sorted(ignored))})",) if ignored else ()
    return Source("imagefolder", split, classes, records, root, passed_over=len(ignored), notes=notes)


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
