"""The manifest of a dataset folder: what its shards hold, and the sample table beside it.

DIR/manifest.json   schema, classes, split, shards, noise, source, digests of the two files below
DIR/samples.npy     one row of SAMPLE_DTYPE per sample, in the order of shard and offset: the row number is the id
DIR/keys.bin        the samples' keys, UTF-8, one after the other
DIR/*.tar           the shards; of a dataset that others wrote, they may lie elsewhere (`Shard.place`)

The folder may lie at a URL, or behind a cache: then its files are fetched, verified by the digests in the manifest.
Nothing here is pickled, and opening it hashes nothing: `shards.verify` does.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shards.cache import Cache
from shards.errors import InputError
from shards.localfolder import BUILD_FOLDER
from shards.names import check_classes
from shards.shard import File, Folder, folder_of
from shards.shard import Shard as Shard  # a part of the schema
from shards.store import Store, find
from shards.table import open_table
from shards.url import is_url

SCHEMA = 1
MANIFEST, SAMPLES, KEYS = "manifest.json", "samples.npy", "keys.bin"
INDEX = "index"  # the "reader" in the source of a dataset whose tars others wrote: their layout is not ours
NO_PERMISSION = "Permission denied"


@dataclass(frozen=True, eq=False)
class Manifest:
    """One split of a dataset, ready to be read; get one from `Manifest.load`.

    `noise` is None or a dict (kind, rate, seed, convention, flipped, realised). `source` says how the folder was
    built. `fingerprint` is the SHA-256 of the manifest's canonical JSON without the shards' places: through the digests
    in it, it covers every byte, wherever it lies. `root` is the folder, and of a dataset that lies elsewhere its folder
    in the cache; `store` is where the files of such a dataset come from, and `content` its manifest.json as it came.
    `folders` are those of the shards, by place; `cache` is what stands before those at URLs. Pickles as the path or
    these; the other process maps the table again.
    """

    root: Path
    split: str
    classes: tuple[str, ...]
    shards: tuple[Shard, ...]
    noise: dict[str, Any] | None
    source: dict[str, Any]
    files: dict[str, File] = field(repr=False)
    fingerprint: str = field(repr=False)
    folders: dict[str, Folder] = field(repr=False)
    cache: Cache
    store: Store | None = None
    content: bytes | None = field(default=None, repr=False)

    @classmethod
    def load(cls, path: str | Path, cache: Cache | None = None) -> Self:
        """Open a dataset folder (or its manifest.json), checking schema, row count and the length of every file.

        Args:
            path: the folder, or an `s3://`, `http(s)://` or other fsspec URL of one, of which manifest.json is fetched
                anew and the sample table into the cache; shards come when they are asked for.
            cache: where fetched files are kept. One with a folder stands before local paths too.

        Raises InputError, in one line, for a folder that is missing, no dataset, half-finished, damaged or locked, a
        URL that is not read, and a server or cache that fails.
        """
        manifest = cls.read(path, cache)
        if problems := manifest.problems():
            more = f" (and {len(problems) - 1:,} more; see `alasca verify`)" if len(problems) > 1 else ""
            raise InputError(f"{manifest.place}: {problems[0]}{more}; build it again or copy it again")
        return manifest

    @classmethod
    def read(cls, path: str | Path, cache: Cache | None = None) -> Self:
        """Parse the manifest alone, looking at no other file; raises InputError as `load` does."""
        try:
            return cls._read(path, cache)
        except OSError as error:
            raise InputError(f"{error.filename or path}: cannot be read ({error.strerror}); mend this") from None

    @classmethod
    def _read(cls, path: str | Path, cache: Cache | None) -> Self:
        cache = cache or Cache()
        found = find(str(path).removesuffix(f"/{MANIFEST}") if is_url(str(path)) else path, cache)
        if isinstance(found, Store):
            return cls._decode(found, found.anew(MANIFEST), cache)
        root = found
        if root.name == MANIFEST and not root.is_dir():
            root = root.parent
        if not root.is_dir():
            raise InputError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}")
        file = root / MANIFEST
        if not file.exists():
            if next(root.glob(f"{BUILD_FOLDER}/part-*.json"), None):
                raise InputError(f"{root}: holds parts of a build; `alasca merge` them when all are finished")
            if (root / BUILD_FOLDER).is_dir():
                raise InputError(f"{root}: half-finished; run its `alasca shard` or `alasca index` again to finish it")
            names = sorted(entry.name for entry in root.iterdir())
            holds = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"
            raise InputError(f"{root}: not a shard folder; build one with `alasca shard`; it holds {holds}")
        manifest = cls._decode(root.absolute(), file.read_bytes(), cache)
        if manifest.fetches:
            cache.sweep()
        return manifest

    @classmethod
    def _decode(cls, home: Folder, content: bytes, cache: Cache) -> Self:
        file = f"{home.name if isinstance(home, Store) else home}/{MANIFEST}"
        try:
            document = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}: damaged, no JSON can be read ({error})") from None
        schema = document.get("schema") if isinstance(document, dict) else None
        if schema != SCHEMA:
            raise InputError(f"{file}: schema {schema!r}, but this version reads {SCHEMA}; build the folder again")
        try:
            shards = tuple(Shard(**shard) for shard in document["shards"])
            files = {name: File(**document["table"][name]) for name in (SAMPLES, KEYS)}
            classes, split = tuple(document["classes"]), str(document["split"])
            noise, source = document["noise"], dict(document["source"])
            check_classes(classes)
            parts: list[Shard | File] = [*shards, *files.values()]
            for part in parts:
                part.check()
            if len({shard.file for shard in shards}) != len(shards):
                raise InputError("two shards have one name")
            folders = {place: folder_of(place, home, cache) for place in {shard.place for shard in shards}}
        except InputError as error:
            raise InputError(f"{file}: {error}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{file}: damaged, {type(error).__name__}: {error}") from None
        for shard in document["shards"]:
            shard.pop("place", None)  # the content is the same wherever it lies
        fingerprint = hashlib.sha256(canonical(document)).hexdigest()
        store = home if isinstance(home, Store) else None
        root = home.folder if isinstance(home, Store) else home
        kept = None if store is None else content
        return cls(root, split, classes, shards, noise, source, files, fingerprint, folders, cache, store, kept)

    def problems(self) -> list[str]:
        """Return what is wrong at a glance: a missing file, another length, another number of rows. Hashes nothing."""
        found = []
        # What is fetched is compared on arrival.
        expected = {name: (self.file_path(name), file.bytes) for name, file in self.files.items()}
        for shard in self.shards:
            if isinstance(folder := self.folders[shard.place], Path):
                expected[shard.file] = folder / shard.name, shard.bytes
        for name, (file, length) in expected.items():
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
        return open_table(self.file_path(SAMPLES))

    @cached_property
    def _keys(self) -> NDArray[np.uint8]:
        return np.memmap(self.file_path(KEYS), dtype=np.uint8, mode="r")

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

    @property
    def place(self) -> str:
        """Where the dataset lies, for messages: the folder, or the URL without its secrets."""
        return str(self.root) if self.store is None else self.store.name

    def file_path(self, name: str) -> Path:
        """Return where a file of the table lies, fetched if need be."""
        if self.store is None:
            return self.root / name
        return self.store.local(name, self.files[name].bytes, self.files[name].sha256)

    def store_of(self, index: int) -> Store | None:
        """Return where shard `index` is fetched from; None where it is opened as it lies."""
        folder = self.folders[self.shards[index].place]
        return folder if isinstance(folder, Store) else None

    @property
    def fetches(self) -> bool:
        """Whether any shard is fetched."""
        return any(isinstance(folder, Store) for folder in self.folders.values())

    def shard_path(self, index: int) -> Path:
        """Return where shard `index` lies, fetched if need be."""
        shard = self.shards[index]
        return shard.path(self.folders[shard.place])

    def open_shard(self, index: int, release: Callable[[], bool] | None = None) -> int:
        """Return a descriptor of shard `index`, fetched if need be; it may be closed at any time.

        Args:
            index: of the shard.
            release: closes another shard of the caller's where a cache is short of room; whether it could.

        Raises:
            OwnError: the shard is missing, is not as long as the manifest says, or cannot be fetched.
        """
        shard = self.shards[index]
        return shard.open(self.folders[shard.place], release)

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
        if self.store is not None:
            return Manifest._decode, (self.store, self.content, self.cache)
        return _reopen, (self.root, self.fingerprint, self.cache)


def _reopen(root: Path, fingerprint: str, cache: Cache) -> Manifest:
    file = root / MANIFEST
    try:
        manifest = Manifest._decode(root, file.read_bytes(), cache)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); mend this") from None
    if manifest.fingerprint != fingerprint:
        raise InputError(f"{root}: its manifest changed while it was in use")
    return manifest


def canonical(document: Any) -> bytes:
    """Return JSON that is equal for equal values: sorted keys, no spaces, UTF-8."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
