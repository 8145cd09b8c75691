"""Whether a dataset is what its manifest says, byte for byte, and what is odd about its images."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shards import shardcheck
from shards.cache import Cache
from shards.destination import find as find_destination
from shards.image import untrusted
from shards.inspection import Labels
from shards.manifest import INDEX, KEYS, SAMPLES, Manifest
from shards.progress import Progress
from shards.shardcheck import ShardCheck
from shards.store import DifferenceError, Store
from shards.url import LOCAL, check

_UNLISTED = (*LOCAL, "http", "https")  # servers that do not say what they have


@dataclass(frozen=True)
class Copies:
    """Images that are another's very bytes.

    images: how many, beside the first of each. mislabelled: how many of all concerned share their bytes with one of
    another label. pair: keys of two of them, of different labels if there are such.
    """

    images: int
    mislabelled: int
    pair: tuple[str, str]

    @classmethod
    def among(cls, digests: NDArray[np.uint64], manifest: Manifest) -> Self | None:
        """Look for equal digests, [N] by id, 0 for an image that could not be read; None where there are none."""
        order = np.argsort(digests, kind="stable")
        order = order[digests[order] != 0]
        groups = np.split(order, np.flatnonzero(np.diff(digests[order])) + 1)
        several = [group for group in groups if len(group) > 1]
        if not several:
            return None
        mixed = [group for group in several if len(np.unique(manifest.labels[group])) > 1]
        shown = mixed[0] if mixed else several[0]
        other = next((i for i in shown[1:] if manifest.labels[i] != manifest.labels[shown[0]]), shown[1])
        return cls(
            sum(len(group) - 1 for group in several),
            sum(len(group) for group in mixed),
            (manifest.key(int(shown[0])), manifest.key(int(other))),
        )


@dataclass(frozen=True)
class Report:
    """What was found.

    differences: one line each, empty where all is well. labels: how they are spread; copies: None where there are none;
    undecodable: key and reason, of images that were decoded in vain. The last three are empty where the table cannot be
    read.
    """

    manifest: Manifest
    differences: tuple[str, ...]
    labels: Labels | None
    copies: Copies | None
    undecodable: tuple[tuple[str, str], ...]


def verify(path: str | Path, progress: Progress | None = None, *, decode: bool = False) -> Report:
    """Compare every byte and every count of a dataset with its manifest; look for copies among its images.

    Hashes all files, reads every tar's headers again, and compares names, offsets, sizes and the labels in the tars
    with the sample table. What lies at a URL is fetched anew, a shard at a time for each CPU, and removed again.

    Args:
        path: a folder or a URL.
        progress: told of every shard.
        decode: also decode every image, as training would.

    Raises InputError where there is no readable manifest to compare with, or a server that does not answer.
    """
    progress = progress or Progress()
    with _fetching_anew(Manifest.read(path)) as manifest, untrusted():
        differences = _check_files(manifest)
        differences += [f"{name} is not in the manifest" for name in _extra(manifest)]
        table = _table(manifest)
        if table is not None:
            differences += _check_table(manifest, table)
        progress.start(manifest.num_samples, "samples")
        checks = _check_shards(manifest, table, decode, progress)
        differences += [line for found in checks for line in found.differences]
        unique = tuple(dict.fromkeys(differences))
        if table is None or len(table) != manifest.num_samples:
            return Report(manifest, unique, None if table is None else Labels.of(table, manifest.num_classes), None, ())
        copies = Copies.among(np.concatenate([found.digests for found in checks]), manifest)
        labels = Labels.of(table, manifest.num_classes)
        return Report(manifest, unique, labels, copies, _undecodable(manifest, checks))


@contextmanager
def _fetching_anew(manifest: Manifest) -> Iterator[Manifest]:
    """Within, what the manifest fetches comes from where it lies, into a folder of its own: a cache knows the past."""
    if manifest.store is None and not manifest.fetches:
        yield manifest
        return
    with tempfile.TemporaryDirectory(prefix="alasca-") as folder:
        cache = Cache(Path(folder), remedy="free some, or set TMPDIR to another disk")
        folders = {
            place: replace(there, cache=cache) if isinstance(there, Store) else there
            for place, there in manifest.folders.items()
        }
        store = None if manifest.store is None else replace(manifest.store, cache=cache)
        yield replace(manifest, folders=folders, cache=cache, store=store)


def _check_files(manifest: Manifest) -> list[str]:
    """Compare what lies beside the manifest, and the lengths of all that can be seen."""
    found = []
    for name, file in manifest.files.items():
        try:
            found += shardcheck.compare_digest(manifest.file_path(name), name, file.sha256)
        except DifferenceError as error:
            found.append(f"{name}: {error.reason}")
    return found if manifest.store is not None and found else manifest.problems() + found


def _extra(manifest: Manifest) -> list[str]:
    listed = {shard.name for shard in manifest.shards if not shard.place} | set(manifest.source.get("empty", ()))
    if manifest.store is None:
        there = [file.name for file in manifest.root.glob("*.tar")]
    elif check(manifest.store.url) in _UNLISTED:
        there = []
    else:
        there = [name for name in find_destination(manifest.store.url).entries() if name.endswith(".tar")]
    return sorted(name for name in there if name not in listed)


def _table(manifest: Manifest) -> NDArray[Any] | None:
    try:
        return manifest.table
    except (OSError, ValueError):  # a DifferenceError is one
        return None  # it is among the differences already


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


def _check_shards(
    manifest: Manifest, table: NDArray[Any] | None, decode: bool, progress: Progress
) -> Sequence[ShardCheck]:
    starts = np.concatenate([[0], np.cumsum(manifest.shard_sizes)])

    def look(index: int) -> ShardCheck:
        rows = None if table is None else table[starts[index] : starts[index + 1]]
        return _check_shard(manifest, index, int(starts[index]), rows, decode)

    checks = []
    pool = ThreadPoolExecutor(min(16, len(os.sched_getaffinity(0))))  # hashing releases the interpreter's lock
    try:
        for shard, found in zip(manifest.shards, pool.map(look, range(len(manifest.shards))), strict=True):
            checks.append(found)
            progress.advance(shard.samples)
    finally:
        pool.shutdown(cancel_futures=True)
    return checks


def _check_shard(manifest: Manifest, index: int, first: int, rows: NDArray[Any] | None, decode: bool) -> ShardCheck:
    shard, foreign = manifest.shards[index], manifest.source.get("reader") == INDEX
    store = manifest.store_of(index)
    if store is None:
        return shardcheck.check(manifest.shard_path(index), shard, first, rows, foreign, decode)
    try:
        held = manifest.open_shard(index)  # what somebody holds is not removed to make room
    except DifferenceError as error:
        nothing = np.zeros(0 if rows is None else len(rows), dtype=np.uint64)
        return ShardCheck(nothing, [f"{shard.file}: {error.reason}"])
    path = store.path(shard.name, shard.sha256)
    try:
        return shardcheck.check(path, shard, first, rows, foreign, decode)
    finally:
        path.unlink(missing_ok=True)
        os.close(held)


def _undecodable(manifest: Manifest, checks: Sequence[ShardCheck]) -> tuple[tuple[str, str], ...]:
    starts = np.concatenate([[0], np.cumsum(manifest.shard_sizes)]).tolist()
    return tuple(
        (manifest.key(start + number), reason)
        for start, found in zip(starts, checks, strict=False)
        for number, reason in found.undecodable
    )
