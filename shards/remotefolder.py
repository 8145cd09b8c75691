"""A folder at a URL in which a build writes."""

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedRandom
from typing import IO, Any, TypeVar

from shards.errors import InputError
from shards.localfolder import BUILD_FOLDER
from shards.remote import DiskFailed, Failed, NotThere, Refused, calling, filesystem, path_in
from shards.url import check, join, redact

_SECONDS = 300.0  # for one file, with all tries
_FIRST_WAIT, _LONGEST_WAIT, _STALL = 0.5, 30.0, 30.0  # seconds
_AT_ONCE = 64  # small files that are asked for together
# Their folders are parts of names. Elsewhere a folder is made; here that could make a bucket.
_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "r2")

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFolder:
    """A folder at a URL that can be written, seen as LocalFolder is; every call tries again for up to 5 minutes.

    `url` may hold secrets; `name` does not. All calls raise InputError where the server refuses or stays away.
    """

    url: str

    @property
    def name(self) -> str:
        """The URL without its secrets."""
        return redact(self.url)

    @property
    def place(self) -> str:
        """What opens it as a dataset: with its secrets."""
        return self.url

    def prepare(self) -> None:
        """Make the folder and BUILD_FOLDER in it, where a folder is something to make."""
        if check(self.url) not in _OBJECT_STORES:
            self._persistently(lambda system, path: system.makedirs(path, exist_ok=True), BUILD_FOLDER)

    def entries(self, folder: str = "") -> dict[str, int | None]:
        """Return the files in it, or in a folder of it, with their bytes; folders with None."""

        def ask(system: Any, path: str) -> dict[str, int | None]:
            try:
                found = system.ls(path, detail=True)
            except FileNotFoundError:
                return {}
            inside = [entry for entry in found if entry["name"].rstrip("/") != path.rstrip("/")]  # a folder's own mark
            names = (entry["name"].rstrip("/").rpartition("/")[2] for entry in inside)
            return {name: e["size"] if e["type"] == "file" else None for name, e in zip(names, inside, strict=True)}

        return self._persistently(ask, folder)

    def read(self, names: Iterable[str]) -> Iterator[bytes | None]:
        """Yield the content of files, in order; None for each that is not there."""
        every = list(names)
        for start in range(0, len(every), _AT_ONCE):
            some = every[start : start + _AT_ONCE]

            def ask(system: Any, _: str, some: list[str] = some) -> list[bytes | None]:
                paths = [path_in(system, join(self.url, name)) for name in some]
                found: dict[str, Any] = system.cat(paths, on_error="return")
                contents = [found.get(path) for path in paths]
                for content in contents:
                    if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                        raise content
                return [content if isinstance(content, bytes) else None for content in contents]

            yield from self._persistently(ask, some[0])

    @contextmanager
    def temporary(self, name: str) -> Iterator[BufferedRandom]:
        """Open a local file without a name, which ends with its process, whatever ends that."""
        try:
            with tempfile.TemporaryFile(prefix="alasca-") as file:
                yield file
        except OSError as error:
            raise InputError(
                f"{tempfile.gettempdir()}: {error.strerror}, while {name} was made there; free some, or set TMPDIR to"
                " another disk"
            ) from None

    def put(self, file: IO[bytes], name: str) -> None:
        """Send a file of `temporary`, whole, to `name`."""
        file.flush()
        length = os.fstat(file.fileno()).st_size

        def send(system: Any, path: str) -> None:
            system.put_file(f"/proc/self/fd/{file.fileno()}", path)
            _compare(system, path, length)

        self._persistently(send, name)

    def write(self, name: str, data: bytes) -> None:
        """Put `data` at `name` at once."""

        def send(system: Any, path: str) -> None:
            system.pipe_file(path, data)
            _compare(system, path, len(data))

        self._persistently(send, name)

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, as far as they are there."""
        for name in names:

            def remove(system: Any, path: str) -> None:
                with suppress(FileNotFoundError):
                    system.rm_file(path)

            self._persistently(remove, name)

    def remove_build_folder(self) -> None:
        """Remove BUILD_FOLDER and all in it."""

        def remove(system: Any, path: str) -> None:
            with suppress(FileNotFoundError):
                system.rm(path, recursive=True)

        self._persistently(remove, BUILD_FOLDER)

    def sync(self) -> None:
        """Nothing to wait for: what the server took is there."""

    @contextmanager
    def opened(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file of it for reading, fetched whole."""
        with self.temporary(name) as file:

            def fetch(system: Any, path: str) -> None:
                system.get_file(path, f"/proc/self/fd/{file.fileno()}")

            self._persistently(fetch, name)
            file.seek(0)
            yield file

    def _persistently(self, action: Callable[[Any, str], T], name: str) -> T:
        """Return action(file system, path of `name`), tried again where that may help."""
        url, began, wait = join(self.url, name) if name else self.url, time.monotonic(), _FIRST_WAIT
        while True:
            try:
                system = filesystem(url, _STALL)
                with calling(_STALL):
                    return action(system, path_in(system, url))
            except NotThere:
                raise InputError(f"{redact(url)}: there is no such bucket or folder; make it first") from None
            except (Refused, DiskFailed) as error:
                raise InputError(f"{redact(url)}: {error}") from None
            except Failed as error:
                spent = time.monotonic() - began
                if spent + wait > _SECONDS:
                    raise InputError(
                        f"{redact(url)}: {error}; gave up after {spent:.0f} s: see to the server, and run the same"
                        " again to go on"
                    ) from None
                if wait == _FIRST_WAIT:
                    print(f"alasca: {redact(url)}: {error}; trying again", file=sys.stderr, flush=True)
            time.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(2 * wait, _LONGEST_WAIT)


def _compare(system: Any, path: str, length: int) -> None:
    system.invalidate_cache(path.rpartition("/")[0])
    found = system.info(path)["size"]
    if found != length:
        raise Failed(f"{found:,} bytes are there after {length:,} were sent")
