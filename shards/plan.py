"""What a build is going to write, decided before the first byte: order, labels, shards."""

import hashlib
import itertools
import math
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shards.destination import Destination
from shards.draws import Stream, permutation
from shards.errors import InputError
from shards.names import check_classes
from shards.noise import Noise
from shards.noise import apply as apply_noise
from shards.outline import Outline, shard_name
from shards.progress import Progress
from shards.readers.record import Record, Source, first
from shards.table import SAMPLE_DTYPE
from shards.worker import Task

_CHUNK = 4096  # files that a thread looks at in one go


@dataclass(frozen=True)
class Plan:
    """Everything decided before the first byte is written; arrays are in the reader's order, except `order`."""

    source: Source
    settings: dict[str, Any]
    stamp: str  # of the raw files' times, which must not reach the manifest
    order: NDArray[np.int64]  # id -> record
    labels: NDArray[np.int32]
    clean: NDArray[np.int32]
    sizes: NDArray[np.int64]
    noise: dict[str, Any] | None
    missing: int  # images that the reader named and that are not there; they are in none of the above

    @cached_property
    def outline(self) -> Outline:
        """What all parts of the build agree on."""
        table = np.zeros(len(self.order), dtype=SAMPLE_DTYPE)
        keys = [self.source.records[i].key.encode() for i in self.order]
        table["key"][1:] = np.cumsum([len(key) for key in keys[:-1]])
        table["label"], table["clean_label"] = self.labels[self.order], self.clean[self.order]
        counts = {"images": len(self.order), "passed_over": self.source.passed_over, "missing": self.missing}
        return Outline(self.settings, counts, self.noise, table, b"".join(keys))

    @cached_property
    def build(self) -> str:
        """Fingerprint of the outline and of the raw files as they are: a finished shard is used again by its own."""
        return hashlib.sha256(f"{self.outline.fingerprint} {self.stamp}".encode()).hexdigest()

    def task(self, index: int, out: Destination) -> Task:
        """Return what a worker needs to write shard `index` into `out`."""
        ids = self.outline.ids(index)
        chosen = self.order[ids.start : ids.stop]
        return Task(
            out,
            shard_name(index),
            ids.start,
            [self.source.records[i] for i in chosen],
            self.labels[chosen].tolist(),
            self.sizes[chosen].tolist(),
            self.source.root,
            self.settings["resize"],
            {"build": self.build, "outline": self.outline.fingerprint},
        )

    def with_noise(self, noise: Noise, progress: Progress) -> Self:
        """Return the plan with noisy labels; raises InputError where the noise does not fit the dataset.

        Not a part of `make`: it may have to decode every image, which a folder that is finished does not need.
        """
        seed = self.settings["seed"]
        labels = apply_noise(noise, self.source, seed, progress)
        # Who asks for noise takes the given labels as true.
        clean = np.where(self.clean < 0, self.labels, self.clean)
        record = noise.record(seed, self.labels, labels)
        return replace(self, labels=labels, clean=clean, noise=record)


def make(
    source: Source,
    seed: int,
    noise: Noise | None,
    resize: int | None,
    samples_per_shard: int,
    allow_missing: float,
    progress: Progress,
) -> Plan:
    """Look at every record and decide what to write, before `noise`; raises InputError and writes nothing."""
    _refuse_duplicates(source)
    sizes, times = _stat(source, progress)
    there = sizes >= 0
    missing = int(np.count_nonzero(~there))
    if missing:
        _refuse_missing(source, there, allow_missing)
        kept = [record for record, is_there in zip(source.records, there.tolist(), strict=True) if is_there]
        source, sizes, times = replace(source, records=kept), sizes[there], times[there]
    records = source.records
    if not records:
        raise InputError(f"{source.reader}: no images to write")
    if math.ceil(len(records) / samples_per_shard) > 10**6:
        raise InputError(f"--samples-per-shard {samples_per_shard}: more than a million shards; write more into each")
    check_classes(source.classes)
    given = np.array([record.label for record in records], dtype=np.int32)
    assert given.min() >= 0 and given.max() < len(source.classes), "labels are indices of classes"
    clean = np.array([record.clean_label for record in records], dtype=np.int32)
    inputs = hashlib.sha256()
    for record, size in zip(records, sizes.tolist(), strict=True):
        body = hashlib.sha256(record.content).hexdigest() if isinstance(record.content, bytes) else ""
        try:
            line = f"{record.key}\0{record.extension}\0{record.label}\0{record.clean_label}\0{size}\0{body}\n".encode()
        except UnicodeEncodeError:
            raise InputError(f"{source.root}/{record.key!a}: the name is not valid UTF-8; rename it") from None
        inputs.update(line)
    settings = {
        "reader": source.reader,
        "options": source.options,
        "split": source.split,
        "seed": seed,
        "noise": noise.text if noise else None,
        "resize": resize,
        "samples_per_shard": samples_per_shard,
        "classes": list(source.classes),
        "inputs": inputs.hexdigest(),
    }
    stamp = hashlib.sha256(times.tobytes()).hexdigest()
    order = permutation(len(records), seed, Stream.ORDER)
    return Plan(source, settings, stamp, order, given, clean, sizes, None, missing)


def _refuse_duplicates(source: Source) -> None:
    """Raise InputError where two records are one image: it would be counted twice, with labels that may differ."""
    keys = sorted(record.key for record in source.records)
    twice = sorted({key for key, following in itertools.pairwise(keys) if key == following})
    if twice:
        images = "1 image is" if len(twice) == 1 else f"{len(twice):,} images are"
        raise InputError(f"{source.where}: {images} named twice ({first(twice)}); name each once")


def _refuse_missing(source: Source, there: NDArray[np.bool_], allowed: float) -> None:
    absent = [source.records[i].key for i in np.flatnonzero(~there).tolist()]
    if len(absent) == len(there):
        raise InputError(
            f"{source.where}: none of its {len(absent):,} images is there ({first(absent)}); is this the right folder?"
        )
    if len(absent) > allowed * len(there):
        verb = "is" if len(absent) == 1 else "are"
        share = math.ceil(1e4 * len(absent) / len(there)) / 1e4
        raise InputError(
            f"{source.where}: {len(absent):,} of {len(there):,} images {verb} missing ({first(absent)}); bring them, "
            f"or leave them out with --allow-missing {share:g}"
        )


def _stat(source: Source, progress: Progress) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return size in bytes and modification time in ns of every image, int64 [N] each; -1 where there is none."""

    def one(record: Record) -> tuple[int, int]:
        part = record.content
        if isinstance(part, bytes):
            return len(part), 0
        assert source.root is not None
        path = os.path.join(source.root, part.path if part else record.key)
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return -1, 0
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); mend or remove it") from None
        size = part.size if part else status.st_size
        if not stat.S_ISREG(status.st_mode) or size >= 2**32:
            raise InputError(f"{path}: not a file of less than 4 GiB; remove it")
        return size, status.st_mtime_ns

    def some(start: int) -> list[tuple[int, int]]:
        return [one(record) for record in source.records[start : start + _CHUNK]]

    with ThreadPoolExecutor(16) as pool:  # network file systems answer slowly, but many at once
        progress.start(len(source.records), "files looked at")
        pairs: list[tuple[int, int]] = []
        for chunk in pool.map(some, range(0, len(source.records), _CHUNK)):
            pairs += chunk
            progress.advance(len(chunk))
    progress.close()
    found = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]
