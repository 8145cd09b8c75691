"""A bounded folder of fetched files, shared by all processes of a node without a word between them.

A file's modification time is when it will be needed next, as far as anybody knows, else when it was last used. Whoever
needs room removes first what is furthest from now, in either direction. A reader's shared lock on its descriptor keeps
a file; a writer's exclusive lock on NAME.part makes it the only one. Locks end with their process, whatever ends it.
"""

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shards.errors import OwnError

PART = ".part"

# Names of `shards.url.folder_name` and `shards.store.Store`: the folder may be one in which other things lie.
_FOLDER = re.compile(r"-[0-9a-f]{16}$")
_FILE = re.compile(r"^[0-9a-f]{64}-|-[0-9a-f]{32}(\.part)?$")
NEVER = 10 * 365 * 24 * 3600.0  # seconds from now, to `mark` what is not needed for long
_KEPT = 7 * 24 * 3600.0  # seconds that the small files beside the shards stay after their last use


@dataclass(frozen=True)
class Cache:
    """Where fetched files are kept, how much of them, and how long a fetch may take.

    folder: None stands for `$XDG_CACHE_HOME/alasca` (else `~/.cache/alasca`) for URLs, and for none for local folders.
    bytes: bound on all files together; each process may go over it by the one shard it cannot do without.
    seconds: for one file, with all its retries, and with the wait for another process that fetches it.
    remedy: what helps where the disk is full, for messages.
    """

    folder: Path | None = None
    bytes: int = 50 * 10**9
    seconds: float = 300.0
    remedy: str = "free some, lower data.cache_gb, or set data.cache (outside a run XDG_CACHE_HOME) to another disk"

    @property
    def root(self) -> Path:
        """The folder itself, absolute."""
        default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "alasca"
        return (self.folder or default).expanduser().absolute()

    def sweep(self) -> None:
        """Remove what processes that are gone left unfinished."""
        for name, _ in list(self._files()):
            if name.endswith(PART):
                _remove_unlocked(Path(name))

    def make_room(self, needed: int, release: Callable[[], bool] | None = None) -> bool:
        """Remove files that nobody reads until `needed` more bytes fit, on the disk too; return whether they do.

        Where that is not enough, `release` is asked to close a file of the caller's, until it returns False.
        """
        self.sweep()  # what was left unfinished takes room, too
        while self._remove(needed, self.bytes) > 0:
            if release is None or not release():
                return False
        return True

    def free(self, needed: int, release: Callable[[], bool] | None = None) -> bool:
        """Remove files as `make_room` does, but because the disk is full: `needed` bytes of them, whatever the bound.

        Returns whether any is gone.
        """
        left = needed
        while (left := self._remove(left)) > 0 and release is not None and release():
            pass
        return left < needed

    def _remove(self, needed: int, bound: int | None = None) -> int:
        """Remove files that nobody reads until all that is left and `needed` are within the bound, and on the disk.

        Without a bound, until `needed` bytes are gone. Returns how many are lacking still; 0 or less: none.
        """
        now, files = time.time(), list(self._files())
        lacking = needed
        if bound is not None:
            # What others fetch at this moment will be about as long; the caller's own claim is among them.
            there = [stat.st_size for name, stat in files if name.endswith(PART)] or [0]
            parts = sum(max(length, needed) for length in there)
            whole = sum(stat.st_size for name, stat in files if not name.endswith(PART))
            disk = os.statvfs(self.root)
            lacking = max(whole + parts - bound, parts - sum(there) - disk.f_bavail * disk.f_frsize)
        if lacking > 0:
            files.sort(key=lambda file: -abs(now - file[1].st_mtime))
        for name, stat in files:
            if lacking <= 0:
                break
            small = not name.endswith((".tar", PART))
            if name.endswith(PART) or (small and now - stat.st_mtime < _KEPT):
                continue
            if _remove_unlocked(Path(name)):
                lacking -= stat.st_size
        return lacking

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        """Yield the path of every file that is the cache's own and its status, whatever else lies in its folder.

        Not Path.glob: there may be many thousands.
        """
        with suppress(FileNotFoundError), os.scandir(self.root) as folders:
            for folder in (entry for entry in folders if _FOLDER.search(entry.name)):
                with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder.path) as files:
                    for file in (entry for entry in files if _FILE.search(entry.name)):
                        with suppress(FileNotFoundError):  # another process makes room too
                            yield file.path, file.stat()


def hold(path: Path, length: int) -> int | None:
    """Return a descriptor of a complete file, kept from removal until it is closed; None where there is none.

    A file of another length is damaged, and removed.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    lock(descriptor, fcntl.LOCK_SH, path)
    stat = os.fstat(descriptor)
    if stat.st_nlink and stat.st_size == length:
        with suppress(OSError):  # of another user
            os.utime(descriptor)
        return descriptor
    os.close(descriptor)
    if stat.st_nlink:
        path.unlink(missing_ok=True)
    return None


def claim(path: Path) -> int | None:
    """Return a descriptor of `path`.part that makes the caller its only writer; None while there is another.

    Raises:
        OwnError: the folder cannot be written, or its file system has no locks.
    """
    part = part_of(path)
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise OwnError(f"the cache {part.parent} cannot be written: {error.strerror}; set data.cache") from None
    try:
        lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, path)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), part.stat()):  # else its writer has just finished it
                return descriptor
    except BlockingIOError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def finish(part: int, path: Path, final: Path) -> None:
    """Give a claimed file, whole and on the disk, the name it is looked for under; it stays locked, now for readers."""
    os.replace(part_of(path), final)
    fcntl.flock(part, fcntl.LOCK_SH)


def abandon(part: int, path: Path) -> None:
    """Let go of a claimed file, and remove it unless it was finished: by then the name may be another writer's."""
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(part), part_of(path).stat()):
            part_of(path).unlink()
    os.close(part)


def part_of(path: Path) -> Path:
    """Where a file is written until it is whole."""
    return path.with_name(path.name + PART)


def mark(path: Path, moment: float) -> None:
    """Note when a file will be needed next, in Unix seconds."""
    with suppress(OSError):  # removed, or of another user
        os.utime(path, (moment, moment))


def lock(descriptor: int, how: int, path: Path) -> None:
    """Lock a file for as long as its descriptor is open; raises OwnError where the file system cannot."""
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        raise OwnError(
            f"the cache {path.parent} is on a file system without locks ({error.strerror}): set data.cache to a local"
            " disk"
        ) from None


def _remove_unlocked(path: Path) -> bool:
    """Remove a file unless a process holds it; whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:
        return False  # of another user
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            return False  # removed, and fetched anew since it was opened
        path.unlink()
        return True
    except FileNotFoundError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
