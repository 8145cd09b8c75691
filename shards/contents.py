"""What one tar that somebody else wrote holds: a row and a key for each sample, its length and its digest."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.image import measure
from shards.readers.foreign import Fields, samples
from shards.table import SAMPLE_DTYPE
from shards.tar import Member


@dataclass(frozen=True)
class Contents:
    """A tar's length in bytes, SHA-256 in hex, and its N samples by their place in it.

    rows: SAMPLE_DTYPE [N]; a label is an index of `texts`, an unknown clean label -1; key and shard are 0. names: of
    the images' members. texts: distinct labels as they stand in the tar, in the order of these indices, each with a
    member that has it. passed_over: members that belong to no sample. unreadable: name and reason, for each image whose
    header cannot be read.
    """

    bytes: int
    sha256: str
    rows: NDArray[Any]
    names: list[str]
    texts: dict[str, str]
    passed_over: list[str]
    unreadable: list[tuple[str, str]]

    @classmethod
    def of(cls, path: Path, where: str, fields: Fields) -> Self:
        """Hash and read the tar at `path`, which messages call `where`; raises InputError as `foreign.samples` does."""
        try:
            with open(path, "rb") as file:
                before = os.fstat(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                passed_over: list[str] = []
                found = sorted(samples(path, where, fields, passed_over), key=lambda sample: sample.image.offset)
                ids: dict[str, int] = {}
                texts: dict[str, str] = {}
                rows, unreadable = np.zeros(len(found), SAMPLE_DTYPE), []
                for row, sample in zip(rows, found, strict=True):
                    for text in filter(None, (sample.label, sample.clean)):
                        ids.setdefault(text, len(ids))
                        texts.setdefault(text, sample.image.name)
                    row["label"], row["clean_label"] = ids[sample.label], ids.get(sample.clean, -1)
                    if reason := _fill(row, sample.image, file, where):
                        unreadable.append((sample.image.name, reason))
                after = path.stat()
        except OSError as error:
            raise InputError(f"{where}: cannot be read ({error.strerror}); mend this") from None
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise InputError(f"{where}: changed while it was read; run again when nothing writes there")
        names = [sample.image.name for sample in found]
        return cls(before.st_size, digest, rows, names, texts, passed_over, unreadable)


def _fill(row: Any, image: Member, file: IO[bytes], where: str) -> str | None:
    """Fill in where an image lies and its pixels; return why its header cannot be read, where that is so."""
    if image.size >= 2**32:
        raise InputError(f"{where}: {image.name!r} has {image.size:,} bytes, too many for an image")
    row["offset"], row["size"] = image.offset, image.size
    file.seek(image.offset)
    try:
        row["width"], row["height"] = measure(file.read(image.size))
    except ValueError as error:
        return str(error)
    return None
