"""Whether a dataset folder is what its manifest says, byte for byte."""

import hashlib
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError, OwnError
from shards.inspection import Labels
from shards.manifest import INDEX, KEYS, NO_PERMISSION, SAMPLES, Manifest, Shard
from shards.progress import Progress
from shards.readers.members import members
from shards.tar import DamagedTar, index_tar, stem
from shards.url import is_url, redact

LINES_PER_SHARD = 5


@dataclass(frozen=True)
class Report:
    """What was found.

    differences: one line each, empty where all is well. labels: how they are spread; None where the table cannot be
    read.
    """

    manifest: Manifest
    differences: tuple[str, ...]
    labels: Labels | None


def verify(path: str | Path, progress: Progress | None = None) -> Report:
    """Compare every byte and every count of a dataset folder with its manifest.

    Hashes all files, reads every tar's headers again, and compares names, offsets, sizes and the labels in the tars
    with the sample table. Raises InputError where there is no readable manifest to compare with.
    """
    progress = progress or Progress()
    if is_url(str(path)):
        raise InputError(f"{redact(str(path))}: verify reads local folders; what is fetched is verified on arrival")
    manifest = Manifest.read(path)
    listed = {shard.name for shard in manifest.shards if not shard.place} | set(manifest.source.get("empty", ()))
    extra = sorted(file.name for file in manifest.root.glob("*.tar") if file.name not in listed)
    differences = manifest.problems() + [f"{name} is not in the manifest" for name in extra]
    for name, file in manifest.files.items():
        differences += _compare_digest(manifest.root / name, name, file.sha256)
    table = _table(manifest)
    if table is not None:
        differences += _check_table(manifest, table)

    progress.start(manifest.num_samples, "samples")
    starts = np.concatenate([[0], np.cumsum(manifest.shard_sizes)])

    def check(index: int) -> list[str]:
        rows = None if table is None else table[starts[index] : starts[index + 1]]
        return _check_shard(manifest, index, int(starts[index]), rows)

    with ThreadPoolExecutor(min(16, len(os.sched_getaffinity(0)))) as pool:  # hashing releases the interpreter's lock
        for shard, found in zip(manifest.shards, pool.map(check, range(len(manifest.shards))), strict=True):
            differences += found
            progress.advance(shard.samples)
    labels = None if table is None else Labels.of(table, manifest.num_classes)
    return Report(manifest, tuple(dict.fromkeys(differences)), labels)


def _table(manifest: Manifest) -> NDArray[Any] | None:
    try:
        return manifest.table
    except (OSError, ValueError):
        return None  # `problems` has said so


def _compare_digest(path: Path, name: str, expected: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return [_unreadable(name, error)]
    return [f"{name}: its SHA-256 is not the manifest's"] if digest != expected else []


def _unreadable(name: str, error: OSError) -> str:
    """Return a line that is `Manifest.problems`' own where that has said it already."""
    if isinstance(error, FileNotFoundError):
        return f"{name} is missing"
    return f"{name} cannot be read ({NO_PERMISSION if isinstance(error, PermissionError) else error.strerror})"


def _check_table(manifest: Manifest, table: NDArray[Any]) -> list[str]:
    found = []
    for column, least in (("label", 0), ("clean_label", -1)):
        outside = np.flatnonzero((table[column] < least) | (table[column] >= manifest.num_classes))
        if len(outside):
            found.append(f"{SAMPLES}: {len(outside):,} {column}s are no class, first that of sample {outside[0]}")
    shards = np.repeat(np.arange(len(manifest.shards)), manifest.shard_sizes)
    if len(shards) == len(table) and not np.array_equal(table["shard"], shards):
        found.append(f"{SAMPLES}: its shard numbers do not follow the manifest's counts")
    starts = np.append(table["key"], np.uint64(manifest.files[KEYS].bytes))
    if starts[0] != 0 or (starts[1:] < starts[:-1]).any():
        found.append(f"{SAMPLES}: its keys do not follow one another in {KEYS}")
    return found


def _check_shard(manifest: Manifest, index: int, first: int, rows: NDArray[Any] | None) -> list[str]:
    held = None
    try:
        if manifest.store_of(index) is not None:
            held = manifest.open_shard(index)  # a cache may remove what nobody holds
        path = manifest.shard_path(index)
        if manifest.source.get("reader") == INDEX:
            return _compare_members(manifest.shards[index], path, rows)
        return _compare_shard(manifest, index, first, rows)
    except OwnError as error:
        return [str(error)]  # of a shard at a URL: it cannot be had, or is another one
    except OSError as error:
        return [_unreadable(manifest.shards[index].file, error)]
    finally:
        if held is not None:
            os.close(held)


def _compare_members(shard: Shard, path: Path, rows: NDArray[Any] | None) -> list[str]:
    """Compare a tar that others wrote: its digest, and that every row of the table is one of its files."""
    found = _compare_digest(path, shard.file, shard.sha256)
    try:
        there = {(member.offset, member.size) for member in members(path, shard.file)}
    except InputError as error:
        return [*found, str(error)]
    places = [] if rows is None else zip(rows["offset"].tolist(), rows["size"].tolist(), strict=True)
    astray = [place for place in places if place not in there]
    if astray:
        found.append(
            f"{shard.file}: {len(astray):,} samples do not lie where the table says, first at {astray[0][0]:,}"
        )
    return found


def _compare_shard(manifest: Manifest, index: int, first: int, rows: NDArray[Any] | None) -> list[str]:
    shard, path = manifest.shards[index], manifest.shard_path(index)
    found = _compare_digest(path, shard.file, shard.sha256)
    count = 0
    with open(path, "rb") as file:
        members = index_tar(file)
        try:
            for label_member, image in itertools.zip_longest(members, members):
                name = stem(first + count)
                if image is None or label_member.name != f"{name}.cls" or not image.name.startswith(f"{name}."):
                    found.append(f"{shard.name}: expected sample {name}, found {label_member.name}")
                    break
                if rows is not None and count < len(rows):
                    file.seek(label_member.offset)
                    written = file.read(min(label_member.size, 20))
                    row = rows[count]
                    if (row["offset"], row["size"]) != (image.offset, image.size):
                        found.append(f"{shard.name}: {image.name} does not lie where the table says")
                    if written != str(row["label"]).encode():
                        found.append(f"{shard.name}: {name} has label {written!r}, {row['label']} in the table")
                count += 1
            else:
                if count != shard.samples:
                    found.append(f"{shard.name}: {count:,} samples, {shard.samples:,} in the manifest")
        except DamagedTar as error:
            found.append(f"{shard.name}: {error}")
    if len(found) > LINES_PER_SHARD:
        found[LINES_PER_SHARD:] = [f"{shard.name}: {len(found) - LINES_PER_SHARD:,} more differences"]
    return found
