"""The manifest of a dataset folder: what its shards hold, and the sample table beside it.

DIR/manifest.json   schema, classes, split, shards, noise, source, digests of the two files below
DIR/samples.npy     one row of SAMPLE_DTYPE per sample, in the order of shard and offset: the row number is the id
DIR/keys.bin        the samples' keys, UTF-8, one after the other
DIR/*.tar           the shards

Nothing here is pickled, and opening it hashes nothing: `shards.verify` does.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError

SCHEMA = 1
MANIFEST, SAMPLES, KEYS = "manifest.json", "samples.npy", "keys.bin"
BUILD_FOLDER = ".build"  # there while a build is unfinished
NO_PERMISSION = "Permission denied"

# offset, size: of the image in its shard, in bytes. key: where it starts in keys.bin; it ends where the next starts.
# width, height: pixels as stored, 0 where the header cannot be read. clean_label: -1 where unknown.
SAMPLE_DTYPE = np.dtype(
    [
        ("offset", "<u8"),
        ("key", "<u8"),
        ("shard", "<u4"),
        ("size", "<u4"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("label", "<i4"),
        ("clean_label", "<i4"),
    ]
)

_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.tar")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Shard:
    """One tar file of the folder: its name, number of samples, length in bytes and SHA-256 in hex."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class File:
    """Length in bytes and SHA-256 (hex) of a file beside the manifest."""

    bytes: int
    sha256: str


@dataclass(frozen=True, eq=False)
class Manifest:
    """One split of a dataset, ready to be read; get one from `Manifest.load`.

    `noise` is None or a dict (kind, rate, seed, convention, flipped, realised). `source` says how the folder was
    built. `fingerprint` is the SHA-256 of the manifest's canonical JSON: through the digests in it, it covers every
    byte of the folder. Pickles as the path alone; the other process maps the table again.
    """

    root: Path
    split: str
    classes: tuple[str, ...]
    shards: tuple[Shard, ...]
    noise: dict[str, Any] | None
    source: dict[str, Any]
    files: dict[str, File] = field(repr=False)
    fingerprint: str = field(repr=False)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Open a dataset folder (or its manifest.json), checking schema, row count and the length of every file.

        Raises InputError, in one line, for a folder that is missing, no dataset, half-finished, damaged or locked.
        """
        manifest = cls.read(path)
        if problems := manifest.problems():
            more = f" (and {len(problems) - 1:,} more; see `alasca verify`)" if len(problems) > 1 else ""
            raise InputError(f"{manifest.root}: {problems[0]}{more}; build it again or copy it again")
        return manifest

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Parse the manifest alone, looking at no other file; raises InputError as `load` does."""
        try:
            return cls._read(Path(path))
        except OSError as error:
            raise InputError(f"{error.filename or path}: cannot be read ({error.strerror}); mend this") from None

    @classmethod
    def _read(cls, root: Path) -> Self:
        if root.name == MANIFEST and not root.is_dir():
            root = root.parent
        if not root.is_dir():
            raise InputError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}")
        file = root / MANIFEST
        if not file.exists():
            if (root / BUILD_FOLDER).is_dir():
                raise InputError(f"{root}: a half-finished build; run its `alasca shard` command again to finish it")
            names = sorted(entry.name for entry in root.iterdir())
            holds = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"
            raise InputError(f"{root}: not a shard folder; build one with `alasca shard`; it holds {holds}")
        try:
            document = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}: damaged, no JSON can be read ({error})") from None
        schema = document.get("schema") if isinstance(document, dict) else None
        if schema != SCHEMA:
            raise InputError(f"{file}: schema {schema!r}, but this version reads {SCHEMA}; build the folder again")
        return cls._parse(root, document)

    @classmethod
    def _parse(cls, root: Path, document: dict[str, Any]) -> Self:
        try:
            shards = tuple(Shard(**shard) for shard in document["shards"])
            files = {name: File(**document["table"][name]) for name in (SAMPLES, KEYS)}
            classes, split = tuple(document["classes"]), str(document["split"])
            noise, source = document["noise"], dict(document["source"])
            for shard in shards:
                check_shard_name(shard.name)
            check_classes(classes)
            parts: list[Shard | File] = [*shards, *files.values()]
            for part in parts:
                if not (isinstance(part.bytes, int) and part.bytes >= 0 and _DIGEST.fullmatch(part.sha256)):
                    raise InputError(f"{part} has a bad length or digest")
            if not all(isinstance(shard.samples, int) and shard.samples > 0 for shard in shards):
                raise InputError("a shard has a bad number of samples")
            if len({shard.name for shard in shards}) != len(shards):
                raise InputError("two shards have one name")
        except InputError as error:
            raise InputError(f"{root / MANIFEST}: {error}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{root / MANIFEST}: damaged, {type(error).__name__}: {error}") from None
        fingerprint = hashlib.sha256(canonical(document)).hexdigest()
        return cls(root.absolute(), split, classes, shards, noise, source, files, fingerprint)

    def problems(self) -> list[str]:
        """Return what is wrong at a glance: a missing file, another length, another number of rows. Hashes nothing."""
        found = []
        expected = {name: file.bytes for name, file in self.files.items()}
        expected |= {shard.name: shard.bytes for shard in self.shards}
        for name, length in expected.items():
            file = self.root / name
            actual = file.stat().st_size if file.is_file() else None
            if actual is None:
                found.append(f"{name} is missing")
            elif actual != length:
                found.append(f"{name} has {actual:,} bytes, {length:,} in the manifest")
            elif not os.access(file, os.R_OK):
                found.append(f"{name} cannot be read ({NO_PERMISSION})")
        if found:
            return found
        try:
            rows = len(self.table)
        except (OSError, ValueError) as error:
            return [f"{SAMPLES} is damaged ({error})"]
        if rows != self.num_samples:
            found.append(f"{SAMPLES} has {rows:,} rows, {self.num_samples:,} samples in the manifest")
        return found

    @cached_property
    def table(self) -> NDArray[Any]:
        """The sample table, SAMPLE_DTYPE [N], memory-mapped, read-only. Raises ValueError where it is damaged."""
        table = np.load(self.root / SAMPLES, mmap_mode="r", allow_pickle=False)
        if table.dtype != SAMPLE_DTYPE or table.ndim != 1:
            raise ValueError(f"{table.dtype} {table.shape} is no sample table")
        return table

    @cached_property
    def _keys(self) -> NDArray[np.uint8]:
        return np.memmap(self.root / KEYS, dtype=np.uint8, mode="r")

    @cached_property
    def num_samples(self) -> int:
        """Number of samples, N; ids are 0 .. N - 1."""
        return sum(shard.samples for shard in self.shards)

    @property
    def num_classes(self) -> int:
        """Number of classes, K; labels are 0 .. K - 1."""
        return len(self.classes)

    @property
    def labels(self) -> NDArray[np.int32]:
        """The labels to train on, int32 [N]: a view of the mapped table."""
        return np.asarray(self.table["label"])

    @property
    def clean_labels(self) -> NDArray[np.int32]:
        """The true labels, int32 [N], -1 where unknown: a view of the mapped table."""
        return np.asarray(self.table["clean_label"])

    @cached_property
    def shard_sizes(self) -> NDArray[np.int64]:
        """Number of samples in each shard, int64 [S]."""
        return np.array([shard.samples for shard in self.shards], dtype=np.int64)

    def shard_path(self, index: int) -> Path:
        """Return where shard `index` lies."""
        return self.root / self.shards[index].name

    def key(self, sample: int) -> str:
        """Return the original relative path of a sample; raises IndexError outside 0 .. N - 1."""
        if not 0 <= sample < self.num_samples:
            raise IndexError(f"sample {sample} of {self.num_samples}")
        start = int(self.table["key"][sample])
        stop = int(self.table["key"][sample + 1]) if sample + 1 < self.num_samples else self.files[KEYS].bytes
        return self._keys[start:stop].tobytes().decode()

    def keys(self) -> Iterator[str]:
        """Yield the keys of all samples, by id; much faster than asking for each."""
        blob = self._keys.tobytes()
        ends = [*self.table["key"][1:].tolist(), len(blob)]
        start = 0
        for end in ends:
            yield blob[start:end].decode()
            start = end

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.root, self.fingerprint)


def _reopen(root: Path, fingerprint: str) -> Manifest:
    manifest = Manifest.read(root)
    if manifest.fingerprint != fingerprint:
        raise InputError(f"{root}: its manifest changed while it was in use")
    return manifest


def check_shard_name(name: object) -> None:
    """Raise InputError unless `name` is a plain file name ending in .tar, which cannot leave the folder."""
    if not (isinstance(name, str) and _SHARD_NAME.fullmatch(name)):
        raise InputError(f"shard name {name!r} is not a plain file name ending in .tar")


def check_classes(classes: Sequence[object]) -> None:
    """Raise InputError unless the class names are distinct, printable, and no paths out of a folder."""
    for name in classes:
        if not (isinstance(name, str) and name and name.isprintable()):
            raise InputError(f"class name {name!r} is not a line of printable text")
        if name.startswith("/") or {".", ".."} & set(re.split(r"[/\\]", name)):
            raise InputError(f"class name {name!r} is a path out of the folder")
    if not classes or len(set(classes)) != len(classes):
        raise InputError("there are no classes, or two have one name")


def canonical(document: Any) -> bytes:
    """Return JSON that is equal for equal values: sorted keys, no spaces, UTF-8."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
