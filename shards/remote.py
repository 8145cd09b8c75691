"""One attempt to reach a file at a URL, and whether another attempt could help where it fails."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shards.errors import InputError
from shards.url import check, redact

_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_MAY_PASS = {408, 429}  # of the 4xx: timeout, too many requests
_NO_ACCESS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")


class Refused(Exception):
    """Nothing will change by asking again: not there, not allowed."""


class Failed(Exception):
    """Another attempt may succeed: no connection, an error of the server, a stall, too much or too little."""


class TooLong(Failed):
    """Much more arrives than there should be."""


class DiskFailed(OSError):
    """The copy cannot be written where it should be: no room, read-only, damaged."""

    def __str__(self) -> str:
        return str(self.strerror)


class NotThere(Refused):
    """There is no such file."""


def copy(
    url: str, path: Path, limit: int, seconds: float, stall: float, received: Callable[[int], None] | None = None
) -> None:
    """Copy a file of at most `limit` bytes to `path`, which is overwritten, within about `seconds`.

    A server that is silent for `stall` seconds is given up; connections are shared by calls that agree on it.
    `received` is told how many more bytes there are, in whichever thread they come.

    What arrives is not checked: a page that says "try later" with status 200 arrives like a shard.

    Raises:
        Refused, NotThere, Failed, TooLong, DiskFailed: it did not arrive whole; no text holds a secret of the URL.
        InputError: a URL that is not read, or whose package is not installed.
    """
    system = filesystem(url, stall)
    with calling(stall):
        system.get_file(path_in(system, url), str(path), callback=_watch(limit, seconds, received))


@contextmanager
def calling(stall: float) -> Iterator[None]:
    """Within, whatever a file system raises becomes one of the errors above; what we raise ourselves stays."""
    try:
        yield
    except (Failed, InputError):
        raise
    except OSError as error:
        # What s3fs does not know of a server's answers it calls EIO too, but then names the answer as its cause.
        if error.errno in _OF_THE_DISK and error.__cause__ is None:
            raise DiskFailed(error.errno, os.strerror(error.errno)) from None
        raise _judged(error, stall) from None
    except Exception as error:  # every file system has its own
        raise _judged(error, stall) from None


def _judged(error: Exception, stall: float) -> Exception:
    """What an error of a file system means."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(error, FileNotFoundError):
        return NotThere("it is not there (404)")
    if isinstance(error, PermissionError) or status in (401, 403):
        return Refused("access is denied (403); see to the credentials")
    if type(error).__name__ in _NO_ACCESS:
        return Refused(f"no credentials ({redact(str(error))}); give them as its other clients read them")
    if isinstance(status, int):
        text = f"the server answers with status {status}"
        return (
            Refused(f"{text}; see to the address") if 400 <= status < 500 and status not in _MAY_PASS else Failed(text)
        )
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return Failed(f"no answer within {stall:.3g} s, or not done in time")
    words = redact(" ".join(str(error).split()))[:200]
    return Failed(f"{type(error).__name__}: {words}" if words else type(error).__name__)


def filesystem(url: str, stall: float) -> Any:
    """Return the file system of a URL; fsspec keeps one per process and options.

    Raises:
        InputError: a URL that is not read, or whose package is not installed.
    """
    import fsspec

    scheme = check(url)
    options: dict[str, Any] = {}
    if scheme in ("s3", "s3a"):
        limits = {"connect_timeout": stall, "read_timeout": stall, "retries": {"total_max_attempts": 1}}
        options = {"config_kwargs": limits, "use_listings_cache": False}
    elif scheme in ("http", "https"):
        from aiohttp import ClientTimeout

        # Of its own accord aiohttp would end a transfer after 5 minutes, and never a stall before that.
        options = {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=stall, sock_read=stall)}}
    try:
        system = fsspec.filesystem(scheme, **options)
    except ImportError as error:
        extra = "pip install 'alasca[s3]'" if scheme in ("s3", "s3a") else str(error)
        raise InputError(f"{redact(url)}: {scheme}:// needs a package that is not installed: {extra}") from None
    except ValueError:
        raise InputError(f"{redact(url)}: fsspec knows no {scheme}://; give a folder, s3:// or http(s)://") from None
    if hasattr(system, "retries"):
        system.retries = 1  # ours are enough, and end in time
    return system


def path_in(system: Any, url: str) -> str:
    """Return a URL as its file system names it."""
    path: str = system._strip_protocol(url)
    return path


def _watch(limit: int, seconds: float, received: Callable[[int], None] | None) -> Any:
    """A callback that ends a transfer which is too long, in bytes or in seconds, and passes on how far it is."""
    from fsspec.callbacks import Callback

    class Watch(Callback):
        def __init__(self) -> None:
            super().__init__()
            self.until, self.told = time.monotonic() + seconds, 0

        def call(self, *args: Any, **kwargs: Any) -> None:
            if self.value > limit:
                raise TooLong(f"more than {limit:,} bytes came")
            if time.monotonic() > self.until:
                raise Failed(f"it did not arrive within {seconds:.3g} s")
            if received is not None and self.value > self.told:
                received(self.value - self.told)
                self.told = self.value

    return Watch()
