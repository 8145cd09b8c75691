"""What a reader hands to the build: records in a fixed order, and where they come from."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

EXTENSIONS = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}


class Slice(NamedTuple):
    """Where an image lies within a larger file: `path` is relative to Source.root; `offset` and `size` are in bytes."""

    path: str
    offset: int
    size: int


class Record(NamedTuple):
    """One labelled image; small, so that millions fit in memory and travel to worker processes."""

    key: str  # where it came from: a relative path, with forward slashes
    extension: str  # jpg, png or webp
    label: int
    clean_label: int = -1  # -1: unknown
    content: bytes | Slice | None = None  # the encoded image itself, or where it lies; None: the file Source.root / key


@dataclass(frozen=True)
class Source:
    """A raw dataset as read: one split of it.

    `options` holds what, beside the files, decides the records; it goes into the manifest, so it names no path of this
    machine. `records` are sorted by key, whatever order the file system lists. `passed_over` counts the files that are
    no images; `notes` are lines for the user.
    """

    reader: str
    split: str
    classes: tuple[str, ...]
    records: Sequence[Record]
    root: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    passed_over: int = 0
    notes: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """How messages name it."""
        return f"--root {self.root}" if self.root is not None else self.reader


def content(record: Record, root: Path | None) -> bytes:
    """Return the encoded image. Raises OSError where its file cannot be read."""
    part = record.content
    if isinstance(part, bytes):
        return part
    assert root is not None, "a record without content needs a root"
    with open(os.path.join(root, part.path if part else record.key), "rb") as file:
        if part is None:
            return file.read()
        file.seek(part.offset)
        return file.read(part.size)


def counted(number: int, noun: str, plural: str = "s") -> str:
    """Return `1 image`, `2,000 images`, for a message; `plural` is the noun's ending."""
    return f"{number:,} {noun}{plural if number != 1 else ''}"


def first(names: Sequence[str]) -> str:
    """Return the first five of many names, for a message."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
