"""The files of a dataset that lies elsewhere: fetched whole, verified on arrival, kept in the cache."""

import errno
import hashlib
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

from shards import cache as files
from shards.cache import Cache
from shards.errors import InputError, OwnError
from shards.remote import Failed, NotThere, Refused, TooLong, copy
from shards.url import LOCAL, check, folder_name, is_url, join, redact

_WRONG_TRIES = 4  # of a file that arrives, but is another one
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds between tries; doubles
_LONGEST_STALL = 30.0  # seconds without a byte
_POLL = 0.05  # seconds between looks at what another process fetches
_LARGEST_MANIFEST = 1 << 30
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ENTRY = "manifest.json"  # what makes a folder a dataset


class DifferenceError(OwnError):
    """A file is not there, or another one is; `reason` says which."""

    def __init__(self, message: str, reason: str = "") -> None:  # a data worker's comes again as its message alone
        super().__init__(message, reason)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Store:
    """A folder at a URL, seen through a cache. `url` may hold secrets: messages and file names use `name`."""

    url: str
    cache: Cache

    @property
    def name(self) -> str:
        """The URL without its secrets."""
        return redact(self.url)

    @property
    def folder(self) -> Path:
        """The folder of the cache that is this URL's alone."""
        return self.cache.root / folder_name(self.url)

    def path(self, name: str, sha256: str) -> Path:
        """Where a file is kept once it is there; another content is another place."""
        return self.folder / f"{sha256}-{name}"

    def local(self, name: str, length: int, sha256: str) -> Path:
        """Return where a file lies, fetched if need be. Others may remove it again: see `open`."""
        os.close(self.open(name, length, sha256))
        return self.path(name, sha256)

    def open(
        self,
        name: str,
        length: int,
        sha256: str,
        *,
        ahead: bool = False,
        release: Callable[[], bool] | None = None,
    ) -> int:
        """Return a descriptor of a file, fetched if need be by whichever process comes first; the others wait for it.

        Until it is closed, no process on this node removes the file to make room.

        Args:
            name: of the file in the folder.
            length: its bytes.
            sha256: its digest, in hex.
            ahead: of need: try once, and only if there is room.
            release: closes one file of the caller's where room is short, and returns whether it could.

        Raises:
            OwnError: it cannot be had in time, waiting for another process included, or what is there is another file.
        """
        path, began = self.path(name, sha256), time.monotonic()
        while True:
            descriptor = files.hold(path, length)
            if descriptor is not None:
                return descriptor
            part = files.claim(path)
            if part is None:
                if time.monotonic() - began > self.cache.seconds:
                    raise OwnError(
                        f"{self.name}/{name}: another process did not have it within {self.cache.seconds:.3g} s: see to"
                        " the server, or raise data.fetch_timeout"
                    )
                time.sleep(_POLL)
                continue
            try:
                descriptor = files.hold(path, length)  # it may have come between the two looks
                if descriptor is None:
                    if not self.cache.make_room(length, release) and ahead:
                        raise OwnError(f"the cache {self.cache.root} has no room yet for {self.name}/{name}")
                    free = None if ahead else partial(self.cache.free, length, release)
                    self._fetch(name, files.part_of(path), part, length, sha256, began, free, once=ahead)
                    files.finish(part, path, path)
                    descriptor = files.hold(path, length)
            finally:
                files.abandon(part, path)
            if descriptor is not None:
                return descriptor

    def anew(self, name: str) -> bytes:
        """Fetch the content of the one file of a dataset whose digest nobody knows; raises OwnError as `passing`."""
        with self.passing(name, _LARGEST_MANIFEST) as path:
            return path.read_bytes()

    @contextmanager
    def passing(self, name: str, limit: int, received: Callable[[int], None] | None = None) -> Iterator[Path]:
        """Fetch a file of at most `limit` bytes of which nobody knows the digest; it is there within the block alone.

        `received` is told of bytes as they come, of every try.

        Raises:
            OwnError: it cannot be had in time.
        """
        path = self.folder / f"{name}-{uuid4().hex}"
        while (part := files.claim(path)) is None:
            pass  # the name is ours alone, but another process may be sweeping
        try:
            self._fetch(name, files.part_of(path), part, limit, None, time.monotonic(), received=received)
            yield files.part_of(path)
        finally:
            files.abandon(part, path)

    def _fetch(
        self,
        name: str,
        path: Path,
        part: int,
        length: int,
        sha256: str | None,
        began: float,
        free: Callable[[], bool] | None = None,
        once: bool = False,
        received: Callable[[int], None] | None = None,
    ) -> None:
        """Fill `path`, which is open as `part`, with the right content and put it on the disk.

        began: when its time began to count. free: removes something from a disk that is full; whether it could.
        """
        url, wait, wrong, tries = join(self.url, name), _FIRST_WAIT, 0, 0
        stall = min(_LONGEST_STALL, self.cache.seconds / 5)
        while True:
            tries += 1
            left = began + self.cache.seconds - time.monotonic()
            try:
                # A longer file is let in, so that its digest can be told; only its excess is not.
                copy(url, path, 2 * length + 2**20 if sha256 else length, max(1.0, left), stall, received)
                os.fsync(part)
                reason = _difference(part, path, length, sha256)
                if reason is None:
                    return
                wrong += 1
            except TooLong as error:
                reason, wrong = str(error), wrong + 1
            except Failed as error:
                reason = str(error)
            except NotThere as error:
                raise DifferenceError(
                    f"{redact(url)}: {error}; see to the address, or copy the folder there again", "it is missing"
                ) from None
            except Refused as error:
                raise OwnError(f"{redact(url)}: {error}") from None
            except OSError as error:  # among them DiskFailed
                if error.errno in _FULL and free is not None and free():
                    continue  # others may have taken the room of the last time
                if error.errno in (*_FULL, errno.EFBIG):
                    failed, mend = f"has no room for {redact(url)}", self.cache.remedy
                else:
                    failed, mend = f"could not take {redact(url)}", "see to the disk that it lies on"
                raise OwnError(f"the cache {self.cache.root} {failed} ({error.strerror}): {mend}") from None
            spent = time.monotonic() - began
            if once or wrong == _WRONG_TRIES or spent + wait > self.cache.seconds:
                mend = "see to the server, or raise data.fetch_timeout"
                if wrong == _WRONG_TRIES:
                    mend = "copy the shards there again"
                times = f"{tries} tries in {spent:.0f} s" if tries > 1 else "one try"
                message = f"{redact(url)}: {reason}; gave up after {times}: {mend}"
                raise DifferenceError(message, reason) if wrong == _WRONG_TRIES else OwnError(message)
            if tries == 1:
                words = f"{redact(url)}: {reason}; trying again for {self.cache.seconds - spent:.0f} s"
                with suppress(OSError):  # a log on a full disk
                    print(f"alasca: {words}", file=sys.stderr, flush=True)
            time.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(2 * wait, _LONGEST_WAIT)


def _difference(part: int, path: Path, length: int, sha256: str | None) -> str | None:
    """What is wrong with a file that arrived; None where nothing is."""
    stat = os.fstat(part)
    if not os.path.samestat(stat, path.stat()):
        return "it was replaced while it arrived"
    if sha256 is None:
        return None if stat.st_size else "it is empty"
    with open(part, "rb", closefd=False) as file:
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if stat.st_size != length:
        return f"{stat.st_size:,} bytes came with SHA-256 {found}, the manifest says {length:,} with {sha256}"
    return None if found == sha256 else f"its SHA-256 is {found}, the manifest says {sha256}"


def find(place: str | Path, cache: Cache) -> Store | Path:
    """Return the folder that a path or file:// URL names, or the store of a URL or of a folder behind a cache.

    Raises:
        InputError: a URL that is not read, or a cache that cannot be written.
    """
    place = str(place)
    if is_url(place) and check(place) in LOCAL:
        place = place.partition("://")[2]
    if not is_url(place):
        folder = Path(place.removesuffix(f"/{_ENTRY}"))
        if cache.folder is None or not (folder / _ENTRY).is_file():
            return Path(place)  # `Manifest` words best what is wrong with it
        place = "file://" + str(folder.absolute())
    store = Store(place, cache)
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the cache {cache.root} cannot be made: {error.strerror}; set data.cache") from None
    cache.sweep()
    return store


def open_plain(path: Path, length: int) -> int:
    """Return a descriptor of a shard in a local folder; raises OwnError where it is missing or of another length."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise OwnError(f"cannot open the shard {path}: {error.strerror}; mend this, or copy it again") from None
    found = os.fstat(descriptor).st_size
    if found != length:
        os.close(descriptor)
        raise OwnError(f"{path} has {found} bytes, its manifest says {length}: copy it again, or shard again")
    return descriptor
