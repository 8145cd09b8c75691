"""DIR/.build: what a build has done so far, so that a killed one continues. Removed at the end."""

import fcntl
import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from shards.errors import InputError
from shards.manifest import BUILD_FOLDER, KEYS, MANIFEST, SAMPLES, Manifest, canonical
from shards.noise import recorded
from shards.progress import Progress
from shards.publication import replace

_OURS = re.compile(rf"shard-\d+\.tar|{re.escape(SAMPLES)}|{re.escape(KEYS)}|{re.escape(BUILD_FOLDER)}")
_PLAN = "plan.json"


def check_folder(out: Path) -> None:
    """Raise InputError unless `out` is a dataset folder, an unfinished one, empty, or not there yet."""
    if "://" in str(out) or re.match(r"[a-z0-9]+:/", str(out)):
        raise InputError(f"--out {out}: shards are written to a local folder; copy it afterwards")
    try:
        _check_local(out)
    except OSError as error:
        raise InputError(
            f"--out {out}: cannot look at {error.filename} ({error.strerror}); name another folder, or mend this"
        ) from None


def _check_local(out: Path) -> None:
    for parent in (out, *out.parents):
        if parent.exists():
            if not parent.is_dir():
                raise InputError(f"--out {out}: {parent} is a file")
            if not os.access(parent, os.W_OK | os.X_OK):
                raise InputError(f"--out {out}: no permission to write in {parent}")
            break
    if not out.exists() or (out / MANIFEST).exists():
        return
    names = sorted(entry.name for entry in out.iterdir())
    ours = (out / BUILD_FOLDER).is_dir()
    if foreign := [name for name in names if not (ours and _OURS.fullmatch(name))]:
        more = ", ..." if len(foreign) > 5 else ""
        raise InputError(f"--out {out}: holds other files ({', '.join(foreign[:5])}{more}); name a new or empty folder")


def finished(out: Path, settings: dict[str, Any]) -> Manifest | None:
    """Return the dataset in `out` if it is the result of `settings`, None if there is none.

    Raises InputError naming the difference where it is another one, or damaged.
    """
    if not (out / MANIFEST).exists():
        return None
    try:
        manifest = Manifest.read(out)
        problems = manifest.problems()
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
            f"--out {out}: holds a dataset that cannot be used ({problems[0]}); remove that folder and run the same "
            "again, or name another --out"
        )
    _compare(out, "another build", there, settings)
    shutil.rmtree(out / BUILD_FOLDER, ignore_errors=True)  # left where a build was killed in its last moment
    return manifest


def _compare(out: Path, what: str, there: dict[str, Any], asked: dict[str, Any]) -> None:
    different = [name for name in asked if there.get(name) != asked[name]]
    if not different:
        return
    name = different[0]
    detail = f"{name} {there.get(name)} there, {asked[name]} asked"
    if name == "classes":
        detail = "its classes differ"
    elif name == "inputs":
        detail = "its images, their sizes or their labels differ"
    raise InputError(f"--out {out}: holds {what} ({detail}); name another --out, or remove that folder")


class Staging:
    """The build folder, held by one process at a time; a context manager.

    settings: what was asked. stamp: identifies the raw files. Raises InputError where another build is under way or
    unfinished there. Shards of the same settings but other raw files are thrown away.
    """

    def __init__(self, out: Path, settings: dict[str, Any], stamp: str, progress: Progress) -> None:
        self.out, self.settings, self.progress = out, settings, progress
        self.folder = out / BUILD_FOLDER
        self.fingerprint = hashlib.sha256(canonical([settings, stamp])).hexdigest()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = open(self.folder / "lock", "w")
        try:
            self._lock()
            self._resume()
        except BaseException:
            self.lock.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.lock.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"--out {self.out}: another build is writing there; wait for it") from None
        except OSError:
            pass  # a file system without locks; two builds at once write the same bytes anyway

    def _resume(self) -> None:
        plan = self.folder / _PLAN
        before = self._before(plan)
        if before is None or before["build"] != self.fingerprint:
            finished = list(self.folder.glob("*.tar.json"))
            if finished and before is not None:
                _compare(self.out, "another, unfinished build", before["settings"], self.settings)
                self.progress.say(f"{self.out}: the raw files changed since the build stopped; starting again")
            # Without a plan, a shard of this very build is known by its sidecar.
            files = [*finished, *self.out.glob("shard-*.tar")]
            for file in [file for file in files if self.sidecar(file.name.removesuffix(".json")) is None]:
                file.unlink()
        for file in self.folder.glob("*.tmp"):
            file.unlink(missing_ok=True)
        replace(plan, canonical({"settings": self.settings, "build": self.fingerprint}), self.folder)

    def _before(self, plan: Path) -> dict[str, Any] | None:
        """Return what a build that was stopped here was asked for; None where there was none, or it is damaged."""
        with suppress(OSError, ValueError, RecursionError):
            before = json.loads(plan.read_bytes())
            if isinstance(before, dict) and isinstance(before.get("settings"), dict) and "build" in before:
                return before
        return None

    def sidecar(self, name: str) -> dict[str, Any] | None:
        """Return what is known of shard `name` if this very build has finished it, else None."""
        with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
            sidecar: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_bytes())
            if sidecar["build"] == self.fingerprint and (self.out / name).stat().st_size == sidecar["bytes"]:
                return sidecar
        return None

    def remove(self) -> None:
        """Remove the folder; the build is complete."""
        shutil.rmtree(self.folder)
