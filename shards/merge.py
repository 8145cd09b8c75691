"""The parts of a build, written by many jobs -> the dataset that one job would have written."""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from shards.destination import Destination, find
from shards.errors import InputError
from shards.localfolder import BUILD_FOLDER
from shards.manifest import MANIFEST, Manifest
from shards.outline import Outline, shard_name
from shards.part import Part
from shards.progress import Progress
from shards.publication import publish_build
from shards.readers.record import first
from shards.staging import compare, lacking, lock, sidecars

_CHUNK = 1 << 20


def merge(places: Sequence[str | Path], progress: Progress | None = None) -> Manifest:
    """Make the first folder the whole dataset, from the parts in it and in the other folders, and return it opened.

    What lies in other folders is copied, verified on the way, and stays there. Equal to a build in one job, byte for
    byte. Folders may be URLs. Killed and called again it goes on; of a finished dataset it changes nothing.

    Raises InputError where parts are missing or unfinished, are of different builds (or of another than the first
    folder's finished one), or cannot be read or written.
    """
    progress = progress or Progress()
    folders = [find(place) for place in places]
    out = folders[0]
    if len({os.path.realpath(folder.name) for folder in folders}) < len(folders):
        raise InputError(f"{out.name}: one folder is named twice; name each once")
    try:
        if MANIFEST in out.entries():
            manifest = _finished(out, folders[1:])
            progress.say(f"{out.name}: is finished already; nothing to do")
            return manifest
        with ExitStack() as stack:
            outlines = [_outline(folder) for folder in folders]
            for folder in folders:
                lock(folder, None, stack)
            for folder, other in zip(folders[1:], outlines[1:], strict=True):
                compare(folder, f"parts of another build than {out.name}", other.settings, outlines[0].settings)
                if other.fingerprint != outlines[0].fingerprint:
                    raise InputError(f"{folder.name}: not the labels of {out.name}; build its parts again")
            manifest = _merged(out, folders, outlines[0], progress)
            out.remove_build_folder()
    except OSError as error:
        where = error.filename or out.name
        raise InputError(f"{where}: {error.strerror or error}; mend this and run the same again to go on") from None
    return manifest


def _finished(out: Destination, others: Sequence[Destination]) -> Manifest:
    """Return the dataset in `out`; raises InputError where it is damaged, or shards in the others are not its own."""
    manifest, entries = Manifest.read(out.place), out.entries()
    if problems := lacking(manifest, entries):
        raise InputError(f"{out.name}: {problems[0]}; build it again or copy it again")
    own = {shard.name: shard.sha256 for shard in manifest.shards}
    for folder in others:
        outline = _outline(folder)
        names = [shard_name(index) for index in range(outline.num_shards)]
        found = zip(names, sidecars(folder, names, outline.fingerprint, "outline"), strict=True)
        if foreign := [name for name, sidecar in found if sidecar and sidecar["sha256"] != own.get(name)]:
            raise InputError(
                f"{folder.name}: its shards ({first(foreign)}) are no part of {out.name}, which is finished already;"
                " name the folders that it was made of"
            )
    if BUILD_FOLDER in entries:
        out.remove_build_folder()  # left where a merge was killed in its last moment
    return manifest


def _outline(folder: Destination) -> Outline:
    outline = Outline.load(folder)
    if outline is None:
        if MANIFEST in folder.entries():
            raise InputError(f"{folder.name}: a finished dataset; name folders of `alasca shard --part I/N`")
        if BUILD_FOLDER in folder.entries():
            raise InputError(f"{folder.name}: no part in it is finished yet; run its commands to the end")
        raise InputError(f"{folder.name}: holds no parts; name folders of `alasca shard --part I/N`")
    return outline


def _merged(out: Destination, folders: Sequence[Destination], outline: Outline, progress: Progress) -> Manifest:
    names = [shard_name(index) for index in range(outline.num_shards)]
    home: dict[str, Destination] = {}
    for folder in folders:
        found = zip(names, sidecars(folder, names, outline.fingerprint, "outline"), strict=True)
        for name, sidecar in found:
            if sidecar is not None:
                home.setdefault(name, folder)
    if missing := [name for name in names if name not in home]:
        raise InputError(
            f"{out.name}: {len(missing):,} of {len(names):,} shards are not there ({first(missing)})"
            f"{_unfinished(folders, names, missing)}; run those commands to the end, then merge again"
        )
    progress.start(len(names), "shards")
    for name in names:
        if home[name] is not out:
            _copy(home[name], out, name)
        progress.advance(1)
    progress.close()
    out.remove(name for name in out.entries() if name.startswith("shard-") and name not in home)
    return publish_build(out, outline, sidecars(out, names, outline.fingerprint, "outline"))


def _unfinished(folders: Sequence[Destination], names: Sequence[str], missing: Sequence[str]) -> str:
    """Name the parts that lack shards, where all parts are of one number."""
    plans = {name for folder in folders for name in folder.entries(BUILD_FOLDER) if name.startswith("part-")}
    counts = {int(name.removesuffix(".json").rpartition("-")[2]) for name in plans}
    if len(counts) != 1:
        return ""
    of, index = counts.pop(), {name: i for i, name in enumerate(names)}
    parts = sorted({index[name] % of + 1 for name in missing})
    return f": part {first([str(Part(number, of)) for number in parts])}"


def _copy(source: Destination, out: Destination, name: str) -> None:
    sidecar = f"{BUILD_FOLDER}/{name}.json"
    (description,) = source.read([sidecar])
    assert description is not None
    expected = json.loads(description)["sha256"]
    digest = hashlib.sha256()
    with source.opened(name) as whole, out.temporary(name) as file:
        while chunk := whole.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
        if digest.hexdigest() != expected:
            raise InputError(f"{source.name}/{name}: changed since it was written; remove it and run its part again")
        out.put(file, name)
    out.write(sidecar, description)
