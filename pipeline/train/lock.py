"""A run's folder belongs to one attempt at a time: two that write into it would ruin both."""

import errno
import fcntl
import os
import socket
import time
from pathlib import Path

from shards.errors import InputError

_NONE_THERE = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class Lock:
    """Held by the leader's process from `take` to `release` or its end, however that comes.

    A lock of POSIX (fcntl): no process that is forked from this one keeps it alive, it works over NFS and Lustre, and
    the system lets go of it when the process is gone; but also as soon as this process opens and closes the file
    anywhere else. Where a file system has none, nothing is locked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def take(self, patience: float) -> None:
        """Wait for whoever has it, up to so many seconds.

        Raises:
            InputError: it is still held then; names the process.
            OSError: the file cannot be made.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        until = time.monotonic() + patience
        while not _locked(descriptor):
            if time.monotonic() >= until:
                holder = os.pread(descriptor, 300, 0).decode(errors="replace").strip()
                os.close(descriptor)
                raise InputError(
                    f"{self.path.parent} is being written by another attempt of this run ({holder or 'unknown'}): wait"
                    " for its end or stop it, or give this one another run.name"
                )
            time.sleep(0.2)
        self._descriptor = descriptor
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Let the next one have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _locked(descriptor: int) -> bool:
    """Whether it is ours now, or the file system has no locks."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in _NONE_THERE:
            raise
    return True
