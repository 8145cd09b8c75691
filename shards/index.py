"""A manifest for tars that somebody else wrote: they stay as they are and where they are."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards import parallel
from shards.cache import Cache
from shards.contents import Contents
from shards.errors import InputError
from shards.image import untrusted
from shards.localfolder import BUILD_FOLDER, LocalFolder
from shards.manifest import INDEX, KEYS, MANIFEST, Manifest, Shard
from shards.places import Tar, labels_of
from shards.progress import Progress
from shards.publication import publish
from shards.readers import classes as class_names
from shards.readers.foreign import Fields
from shards.readers.record import counted, first
from shards.staging import check_folder
from shards.store import Store
from shards.url import is_url, redact

_THREADS = 4  # tars at once: one connection seldom fills a line
_LARGEST = 1 << 36  # bytes of a tar that is fetched: an answer without an end is not one


class _Part(NamedTuple):
    """A tar, what its samples' keys begin with, and what it holds."""

    tar: Tar
    label: str
    held: Contents


def index(
    tars: Sequence[Tar],
    out: str | Path,
    *,
    split: str = "train",
    label_field: str | None = None,
    clean_field: str | None = None,
    classes: str | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write manifest, sample table and keys of `tars` into `out` at once, and return the dataset opened.

    Samples and labels are those of the reader webdataset, not shuffled: in the order of `tars` and of the images in
    each. Keys are `TAR/member`, with as much of the tar's path as tells it from the others. A tar at a URL is fetched
    once, into the cache and out again. `out` may be the folder in which the tars lie. Equal tars give an equal
    fingerprint, wherever they lie. A folder that holds this very index already is left alone.

    Raises InputError, and writes nothing, for an `out` that holds something else; for a tar that is damaged, not there,
    the same as another, or has a sample without image or label; and for a label that is no class.
    """
    if is_url(str(out)):
        raise InputError(f"--out {redact(str(out))}: the manifest is written to a local folder; copy it afterwards")
    out, cache, progress = Path(out), cache or Cache(), progress or Progress()
    _check(out, tars)
    fields = Fields(label_field, clean_field)
    if any(tar.remote for tar in tars):
        cache.sweep()

    turn = threading.Lock()  # tars come in several threads

    def received(count: int) -> None:
        with turn:
            progress.received(count)

    def done() -> None:
        with turn:
            progress.advance(1)

    def read(tar: Tar) -> Contents:
        if not tar.remote:
            return Contents.of(Path(tar.where), tar.where, fields)
        with Store(tar.folder, cache).passing(tar.name, _LARGEST, received) as path:
            return Contents.of(path, tar.where, fields)

    progress.start(len(tars), "tars")
    with untrusted():
        read_ones = parallel.run(read, tars, _THREADS, done)
    progress.close()
    found = [_Part(*part) for part in zip(tars, labels_of(tars), read_ones, strict=True)]
    parts = [part for part in found if part.held.names]
    _refuse_copies(parts)
    if not parts:
        raise InputError(f"no sample in {counted(len(tars), 'tar')}, first {tars[0].where}; are these the right ones?")
    names, table = _table(parts, fields, Path(classes) if classes is not None else None)
    keys = [f"{label}/{name}".encode() for _, label, held in parts for name in held.names]
    table["key"][1:] = np.cumsum([len(key) for key in keys[:-1]])
    source, notes = _source(found, fields)
    for note in (*class_names.without_images(names, table["label"]), *notes):
        progress.say(f"{out}: {note}")
    shards = [Shard(t.name, len(h.names), h.bytes, h.sha256, _place(t.folder, out)) for t, _, h in parts]
    for shard in shards:
        shard.check()
    if (out / MANIFEST).exists():
        return _same(out, split, names, shards, table, b"".join(keys), source, progress)
    try:
        manifest = publish(
            LocalFolder(out),
            split=split,
            classes=names,
            shards=shards,
            table=table,
            keys=b"".join(keys),
            noise=None,
            source=source,
        )
        LocalFolder(out).remove_build_folder()  # with what a killed index left
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror or error}; mend this and run the same again") from None
    return manifest


def _check(out: Path, tars: Sequence[Tar]) -> None:
    """Raise InputError where `out` cannot hold the index: what can be said before anything is read."""
    ours = {tar.name for tar in tars if not tar.remote and os.path.realpath(tar.folder) == os.path.realpath(out)}
    if not ours:
        check_folder(LocalFolder(out))
    if (out / MANIFEST).exists():
        there = Manifest.read(out)
        if there.source.get("reader") != INDEX:
            raise InputError(f"--out {out}: holds another dataset; name another folder")
        given = [(_place(tar.folder, out), tar.name) for tar in tars]
        known = [(shard.place, shard.name) for shard in there.shards]
        listed = set(known)
        if [tar for tar in given if tar in listed or tar[1] not in there.source["empty"]] != known:
            raise InputError(
                f"--out {out}: holds an index of other tars; name another folder, or remove its {MANIFEST}"
            )
        return
    if (out / BUILD_FOLDER).is_dir() and not all(name.endswith(".tmp") for name in os.listdir(out / BUILD_FOLDER)):
        raise InputError(f"--out {out}: holds an unfinished build; name another folder")
    if ours:
        if others := sorted(path.name for path in out.glob("*.tar") if path.name not in ours):
            raise InputError(f"--out {out}: holds other tars too ({first(others)}); index all, or name another folder")
        if not os.access(out, os.W_OK | os.X_OK):
            raise InputError(f"--out {out}: no permission to write there; name another folder")


def _refuse_copies(parts: Sequence[_Part]) -> None:
    """Raise InputError where two tars are one: every sample would count twice."""
    known: dict[str, Tar] = {}
    for tar, _, held in parts:
        other = known.setdefault(held.sha256, tar)
        if other != tar:
            raise InputError(f"{tar.where}: holds the very bytes of {other.where}; index one of them")


def _table(parts: Sequence[_Part], fields: Fields, classes: Path | None) -> tuple[tuple[str, ...], NDArray[Any]]:
    """Return the class names and all rows, keys apart; raises InputError for a label that is no class."""
    places: dict[str, str] = {}
    for tar, _, held in parts:
        for text, name in held.texts.items():
            places.setdefault(text, f"{tar.where}/{name}")
    if fields.clean is not None and all((held.rows["clean_label"] < 0).all() for *_, held in parts):
        raise InputError(f"--clean-field {fields.clean}: no .json has it; name a field that is there")
    names, ids = class_names.resolve(places, classes)
    table = np.concatenate([held.rows for *_, held in parts])
    start = 0
    for number, (*_, held) in enumerate(parts):
        rows = table[start : start + len(held.rows)]
        labels = np.array([*(ids[text] for text in held.texts), -1], dtype=np.int32)  # the last one: unknown
        rows["shard"], rows["label"] = number, labels[held.rows["label"]]
        rows["clean_label"] = labels[held.rows["clean_label"]]
        start += len(rows)
    return names, table


def _source(found: Sequence[_Part], fields: Fields) -> tuple[dict[str, Any], list[str]]:
    """Return what the manifest says of its making, which names no place, and lines for the user."""
    passed_over = [f"{label}/{name}" for _, label, held in found for name in held.passed_over]
    unreadable = [(f"{label}/{name}", reason) for _, label, held in found for name, reason in held.unreadable]
    empty = [tar.name for tar, _, held in found if not held.names]
    source = {
        "reader": INDEX,
        "options": fields.options(),
        "counts": {
            "images": sum(len(held.names) for *_, held in found),
            "passed_over": len(passed_over),
            "missing": 0,
            "unreadable": len(unreadable),
        },
        "unreadable": [{"key": key, "reason": reason} for key, reason in unreadable[:5]],
        "empty": empty,
    }
    notes = []
    if passed_over:
        notes.append(f"passed over {counted(len(passed_over), 'file')} of no sample ({first(passed_over)})")
    if empty:
        notes.append(f"left out {counted(len(empty), 'tar')} without a sample ({first(empty)})")
    return source, notes


def _place(folder: str, out: Path) -> str:
    """Return the place of a shard: relative where folder and `out` may move together, "" where they are one."""
    if is_url(folder):
        return folder
    ours, theirs = os.path.realpath(out), os.path.realpath(folder)
    if os.path.commonpath([ours, theirs]) == "/":
        return folder
    relative = os.path.relpath(theirs, ours)
    return "" if relative == "." else relative


def _same(
    out: Path,
    split: str,
    names: tuple[str, ...],
    shards: Sequence[Shard],
    table: NDArray[Any],
    keys: bytes,
    source: dict[str, Any],
    progress: Progress,
) -> Manifest:
    """Return the index that `out` holds already; raises InputError naming the difference where it is another one."""
    there = Manifest.read(out)
    pairs = {
        "split": (there.split, split),
        "classes": (there.classes, names),
        "content of the tars": (there.shards, tuple(shards)),
        "options": (there.source, source),
    }
    differ = [name for name, (theirs, ours) in pairs.items() if theirs != ours]
    if not differ:
        there = Manifest.load(out)
        if not np.array_equal(there.table, table) or there.file_path(KEYS).read_bytes() != keys:
            differ = ["samples"]
    if differ:
        raise InputError(
            f"--out {out}: holds another index, with other {' and '.join(differ)}; name another folder, or remove its"
            f" {MANIFEST}"
        )
    progress.say(f"{out}: holds this very index already; nothing to do")
    return there
