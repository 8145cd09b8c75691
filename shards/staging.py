"""DIR/.build: what a build has done so far, so that a killed one continues. Removed at the end."""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from shards.destination import Destination
from shards.errors import InputError
from shards.localfolder import BUILD_FOLDER, LocalFolder
from shards.manifest import KEYS, MANIFEST, SAMPLES, Manifest, canonical
from shards.noise import recorded
from shards.part import Part
from shards.progress import Progress

_OURS = re.compile(rf"shard-\d+\.tar|{re.escape(SAMPLES)}|{re.escape(KEYS)}|{re.escape(BUILD_FOLDER)}")
_PLAN = re.compile(r"plan\.json|part-\d+-of-\d+\.json")


def check_folder(out: Destination) -> None:
    """Raise InputError unless `out` is a dataset folder, an unfinished one, empty, or not there yet."""
    if not isinstance(out, LocalFolder):
        _check_entries(out)
        return
    if re.match(r"[a-z0-9]+:/", out.name):
        raise InputError(f"--out {out.name}: a URL has two slashes, as in s3://BUCKET/PREFIX")
    try:
        _check_parents(out.root)
        _check_entries(out)
    except OSError as error:
        raise InputError(
            f"--out {out.name}: cannot look at {error.filename} ({error.strerror}); name another folder, or mend this"
        ) from None


def _check_parents(out: Path) -> None:
    for parent in (out, *out.parents):
        if parent.exists():
            if not parent.is_dir():
                raise InputError(f"--out {out}: {parent} is a file")
            if not os.access(parent, os.W_OK | os.X_OK):
                raise InputError(f"--out {out}: no permission to write in {parent}")
            return


def _check_entries(out: Destination) -> None:
    names = sorted(out.entries())
    ours = BUILD_FOLDER in names
    foreign = [name for name in names if not (ours and _OURS.fullmatch(name))]
    if foreign and MANIFEST not in names:
        more = ", ..." if len(foreign) > 5 else ""
        raise InputError(
            f"--out {out.name}: holds other files ({', '.join(foreign[:5])}{more}); name a new or empty folder"
        )


def finished(out: Destination, settings: dict[str, Any]) -> Manifest | None:
    """Return the dataset in `out` if it is the result of `settings`, None if there is none.

    Raises InputError naming the difference where it is another one, or damaged.
    """
    entries = out.entries()
    if MANIFEST not in entries:
        return None
    try:
        manifest = Manifest.read(out.place)
        problems = lacking(manifest, entries)
        there = manifest.source | {
            "split": manifest.split,
            "classes": list(manifest.classes),
            "noise": recorded(manifest.noise) if manifest.noise else None,
        }
    except InputError as error:
        problems = [str(error)]
    except (AttributeError, KeyError, TypeError):
        problems = [f"{MANIFEST} says of its noise what no build writes"]
    if problems:
        raise InputError(
            f"--out {out.name}: holds a dataset that cannot be used ({problems[0]}); remove that folder and run the "
            "same again, or name another --out"
        )
    compare(out, "another build", there, settings)
    if BUILD_FOLDER in entries:
        out.remove_build_folder()  # left where a build was killed in its last moment
    return manifest


def lacking(manifest: Manifest, entries: dict[str, int | None]) -> list[str]:
    """Return which files of a dataset are missing or of another length, in words; entries: those of its folder."""
    expected = {name: file.bytes for name, file in manifest.files.items()}
    expected |= {shard.name: shard.bytes for shard in manifest.shards}
    return [
        f"{name} is missing" if name not in entries else f"{name} has {entries[name]} bytes, not {length:,}"
        for name, length in expected.items()
        if entries.get(name) != length
    ]


def compare(out: Destination, what: str, there: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise InputError naming the first difference of two builds' settings, if there is one."""
    different = [name for name in asked if there.get(name) != asked[name]]
    if not different:
        return
    name = different[0]
    detail = f"{name} {there.get(name)} there, {asked[name]} asked"
    if name == "classes":
        detail = "its classes differ"
    elif name == "inputs":
        detail = "its images, their sizes or their labels differ"
    raise InputError(f"--out {out.name}: holds {what} ({detail}); name another --out, or remove that folder")


def sidecars(out: Destination, names: Sequence[str], fingerprint: str, of: str) -> Iterator[dict[str, Any] | None]:
    """Yield what is known of each shard in `names` that is finished and whole, else None.

    fingerprint: of its build or of its outline. of: which, "build" or "outline".
    """
    shards, known = out.entries(), out.entries(BUILD_FOLDER)
    there = [name for name in names if f"{name}.json" in known and name in shards]
    contents = zip(there, out.read(f"{BUILD_FOLDER}/{name}.json" for name in there), strict=True)
    arrived = next(contents, None)
    for name in names:
        found = None
        if arrived and arrived[0] == name:
            with suppress(ValueError, RecursionError, KeyError, TypeError):
                sidecar = json.loads(arrived[1] or b"")
                if sidecar[of] == fingerprint and sidecar["bytes"] == shards[name]:
                    found = sidecar
            arrived = next(contents, None)
        yield found


class Staging:
    """The build folder, held by one build, or one job of each of its parts, at a time; a context manager.

    names: of the shards to write. settings: what was asked. build: fingerprint. todo: those of `names` that are not
    finished yet, once it is entered. published: the dataset, where another job has finished it meanwhile. Raises
    InputError where another build is under way or unfinished there. Shards of the same settings but other raw files are
    thrown away.
    """

    def __init__(
        self,
        out: Destination,
        names: Sequence[str],
        settings: dict[str, Any],
        build: str,
        part: Part | None,
        progress: Progress,
    ) -> None:
        self.out, self.names, self.settings, self.build = out, names, settings, build
        self.part, self.progress = part, progress

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.out.prepare()
            lock(self.out, self.part, stack)
            self.published = finished(self.out, self.settings)  # by another job, since the build looked first
            if self.published is None:
                self._resume()
            self._locks = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._locks.close()

    def _resume(self) -> None:
        own = f"part-{self.part.number}-of-{self.part.of}.json" if self.part else "plan.json"
        known = self.out.entries(BUILD_FOLDER)
        plans = self._plans([name for name in known if _PLAN.fullmatch(name)])
        done = [name for name in known if name.endswith(".tar.json")]
        others = [name for name in plans if name not in (own, "plan.json")]
        for plan in plans.values() if done or others else []:
            compare(self.out, "another, unfinished build", plan["settings"], self.settings)
        before = plans.get(own)
        if before and before["build"] != self.build and done:
            self.progress.say(f"{self.out.name}: the raw files changed since the build stopped; starting again")
        # Without a plan, a shard of this very build is known by its sidecar.
        found = zip(self.names, sidecars(self.out, self.names, self.build, "build"), strict=True)
        self.todo = {name for name, sidecar in found if sidecar is None}
        there, mine = self.out.entries(), set(self.names)
        written = set(self.todo if self.part else there) - (mine - self.todo)
        self.out.remove(name for name in there if name in written and name.startswith("shard-"))
        self.out.remove(f"{BUILD_FOLDER}/{name}" for name in known if name.removesuffix(".json") in self.todo)
        # Of a job that was killed; those of other parts are being written.
        left = [name for name in known if name.endswith(".tmp")]
        self.out.remove(
            f"{BUILD_FOLDER}/{name}" for name in left if not self.part or name[: name.find(".tar") + 4] in mine
        )
        self.out.write(f"{BUILD_FOLDER}/{own}", canonical({"settings": self.settings, "build": self.build}))

    def _plans(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return what builds that were stopped here were asked for; a damaged plan is none."""
        plans = {}
        for name, content in zip(names, self.out.read(f"{BUILD_FOLDER}/{name}" for name in names), strict=True):
            with suppress(ValueError, RecursionError):
                plan = json.loads(content or b"")
                if isinstance(plan, dict) and isinstance(plan.get("settings"), dict) and "build" in plan:
                    plans[name] = plan
        return plans


def lock(out: Destination, part: Part | None, stack: ExitStack) -> None:
    """Hold a local build folder until `stack` ends: alone, or beside other parts. At a URL there are no locks.

    Raises InputError where that is another process's.
    """
    if not isinstance(out, LocalFolder):
        return
    locks = [("lock", fcntl.LOCK_SH if part else fcntl.LOCK_EX)]
    if part:
        locks.append((f"lock-{part.number}-of-{part.of}", fcntl.LOCK_EX))
    for name, how in locks:
        file = stack.enter_context((out.root / BUILD_FOLDER / name).open("a+"))
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"--out {out.name}: another build is writing there; wait for it") from None
        except OSError:
            pass  # a file system without locks; two builds at once write the same bytes anyway
