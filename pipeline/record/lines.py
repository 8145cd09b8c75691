"""A file of lines that a full disk neither tears nor loses."""

import os
import sys
from contextlib import suppress
from pathlib import Path


def say(text: str) -> None:
    """A line for whoever watches.

    Nobody may: Ctrl-C also ends the `tee` that was to keep it, and a log may lie on the very disk that is full.
    """
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


class Lines:
    """Appends whole lines to a file; those that the disk does not take wait, in order, for the next time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._end = os.lseek(self._file, 0, os.SEEK_END)
        self._waiting = b""
        self._warned = False

    def append(self, line: str) -> None:
        """Write a line, given without its end; a disk that fails is said once and never raised."""
        self._waiting += line.encode() + b"\n"
        try:
            written = 0
            while written < len(self._waiting):
                written += os.pwrite(self._file, self._waiting[written:], self._end + written)
        except OSError as error:
            # What was written of it is written over next time; until then no reader sees a torn line.
            with suppress(OSError):
                os.ftruncate(self._file, self._end)
            if not self._warned:
                self._warned = True
                say(f"alasca: WARNING: {self._path} cannot be written ({error.strerror}); its lines wait in memory")
            return
        self._end += len(self._waiting)
        self._waiting = b""

    def sync(self) -> None:
        """Wait until all that it took is on the disk."""
        with suppress(OSError):  # said already, or said at the next line
            os.fsync(self._file)

    def close(self) -> int:
        """Let go of the file; returns how many lines it never took."""
        os.close(self._file)
        return self._waiting.count(b"\n")
