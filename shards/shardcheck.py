"""Whether one shard is what manifest and table say of it, and what its images are."""

import hashlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.image import try_to_decode
from shards.manifest import NO_PERMISSION
from shards.readers.members import members
from shards.shard import Shard
from shards.tar import DamagedTar, index_tar, stem

LINES_PER_SHARD = 5


@dataclass
class ShardCheck:
    """What was found in a shard of n samples.

    differences: one line each. digests: uint64 [n], equal for equal images, 0 where one cannot be read; undecodable:
    place in the shard and reason.
    """

    digests: NDArray[np.uint64]
    differences: list[str] = field(default_factory=list)
    undecodable: list[tuple[int, str]] = field(default_factory=list)


def check(path: Path, shard: Shard, first: int, rows: NDArray[Any] | None, foreign: bool, decode: bool) -> ShardCheck:
    """Compare a shard, which lies at `path`, with its entry in the manifest and with its rows of the table.

    Args:
        path: of the file.
        shard: its entry.
        first: id of its first sample.
        rows: SAMPLE_DTYPE [n], or None where the table cannot be read.
        foreign: whether others wrote it: then its members have other names.
        decode: whether to decode every image, too.
    """
    found = ShardCheck(np.zeros(0 if rows is None else len(rows), dtype=np.uint64))
    try:
        found.differences += compare_digest(path, shard.file, shard.sha256)
        lines = _compare_members(path, shard, rows) if foreign else _compare_layout(path, shard, first, rows)
        found.differences += itertools.islice(lines, LINES_PER_SHARD)
        if more := sum(1 for _ in lines):
            found.differences.append(f"{shard.file}: {more:,} more differences")
        if rows is not None:
            _look_at_images(path, rows, decode, found)
    except OSError as error:
        found.differences.append(unreadable(shard.file, error))
    return found


def compare_digest(path: Path, name: str, expected: str) -> list[str]:
    """Return a line where the SHA-256 of a file is another, or it cannot be read; `name` is how to call it."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return [unreadable(name, error)]
    return [f"{name}: its SHA-256 is not the manifest's"] if digest != expected else []


def unreadable(name: str, error: OSError) -> str:
    """Return a line that is `Manifest.problems`' own where that has said it already."""
    if isinstance(error, FileNotFoundError):
        return f"{name} is missing"
    return f"{name} cannot be read ({NO_PERMISSION if isinstance(error, PermissionError) else error.strerror})"


def _compare_members(path: Path, shard: Shard, rows: NDArray[Any] | None) -> Iterator[str]:
    try:
        there = {(member.offset, member.size) for member in members(path, shard.file)}
    except InputError as error:
        yield str(error)
        return
    places = [] if rows is None else zip(rows["offset"].tolist(), rows["size"].tolist(), strict=True)
    astray = [place for place in places if place not in there]
    if astray:
        yield f"{shard.file}: {len(astray):,} samples do not lie where the table says, first at {astray[0][0]:,}"


def _compare_layout(path: Path, shard: Shard, first: int, rows: NDArray[Any] | None) -> Iterator[str]:
    count = 0
    with open(path, "rb") as file:
        found = index_tar(file)
        try:
            for label_member, image in itertools.zip_longest(found, found):
                name = stem(first + count)
                if image is None or label_member.name != f"{name}.cls" or not image.name.startswith(f"{name}."):
                    yield f"{shard.name}: expected sample {name}, found {label_member.name}"
                    return
                if rows is not None and count < len(rows):
                    file.seek(label_member.offset)
                    written = file.read(min(label_member.size, 20))
                    row = rows[count]
                    if (row["offset"], row["size"]) != (image.offset, image.size):
                        yield f"{shard.name}: {image.name} does not lie where the table says"
                    if written != str(row["label"]).encode():
                        yield f"{shard.name}: {name} has label {written!r}, {row['label']} in the table"
                count += 1
        except DamagedTar as error:
            yield f"{shard.name}: {error}"
            return
    if count != shard.samples:
        yield f"{shard.name}: {count:,} samples, {shard.samples:,} in the manifest"


def _look_at_images(path: Path, rows: NDArray[Any], decode: bool, found: ShardCheck) -> None:
    with open(path, "rb") as file:
        places = zip(rows["offset"].tolist(), rows["size"].tolist(), strict=True)
        for number, (offset, size) in enumerate(places):
            if offset + size > os.fstat(file.fileno()).st_size:
                continue  # is a difference already
            file.seek(offset)
            data = file.read(size)
            found.digests[number] = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) or 1
            if decode:
                try:
                    try_to_decode(data)
                except ValueError as error:
                    found.undecodable.append((number, str(error)))
