"""What may ask a run to stop before its end, and the mark that it did."""

import contextlib
import json
import math
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Self

import psutil

from pipeline.train.launcher import Launcher

STOPPED = "stopped"  # in the run's folder while it waits to go on; launch/ tells by it a stop from a failure
_FILE = "stop"  # whoever puts it there stops the run

_LAUNCHERS_WAIT_S = 30  # torchrun and deepspeed, between SIGTERM and SIGKILL
_LONG_SAVE_S = 20.0


class Reason(IntEnum):
    """Why a run stops; of several, ranks agree on the largest."""

    MAX_MINUTES = 1
    FILE = 2
    SIGUSR1 = 3
    LAUNCHER = 4
    SIGTERM = 5
    SIGINT = 6

    def __str__(self) -> str:
        words = {"MAX_MINUTES": "run.max_minutes are over", "FILE": "a stop file", "LAUNCHER": "its launcher is gone"}
        return words.get(self.name, self.name)


_SIGNALS = {signal.Signals[r.name]: r for r in Reason if r.name.startswith("SIG")}


class Asked(BaseException):
    """A signal came while `Stop.interruptible` let it end what was waited for."""


class Stop:
    """Listens, within its context, for what asks this process to stop; the loop looks at `asked` where it can act.

    Signals are only noted: whatever is being written gets finished. A second Ctrl-C ends the process at once, even
    where it hangs in a collective: a thread hears it, since Python's own handlers wait for the main thread. The same
    thread takes the end of the launcher for a SIGTERM.

    Args:
        folder: of the run, for the stop file; None on all ranks but the first.
        max_minutes: since the start of this process; None is no limit.
        launcher: of this process.
    """

    def __init__(self, folder: Path | None, max_minutes: float | None, launcher: Launcher) -> None:
        self._launcher = launcher
        self._reason: Reason | None = None
        self._raises = False
        self._folder = folder
        self._born = float(psutil.Process().create_time())
        left = math.inf if max_minutes is None else max_minutes * 60 - (time.time() - self._born)
        self._until = time.monotonic() + left
        self._look_again = 0.0
        self._ctrl_c = 0
        self._warned = False

    def __enter__(self) -> Self:
        if self._folder is not None:
            (self._folder / STOPPED).unlink(missing_ok=True)
            self._drop_old_file(self._folder / _FILE)
        self._heard, self._tell = os.pipe()
        os.set_blocking(self._tell, False)
        self._in_main = threading.current_thread() is threading.main_thread()
        if self._in_main:
            self._handlers = {number: signal.signal(number, self._note) for number in _SIGNALS}
            self._wakeup = signal.set_wakeup_fd(self._tell, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="stop", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._in_main:
            for number, handler in self._handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)
            signal.set_wakeup_fd(self._wakeup)
        os.write(self._tell, b"\0")
        self._thread.join()
        os.close(self._heard)
        os.close(self._tell)

    def asked(self) -> Reason | None:
        """Why this process was asked to stop, so far. Cheap; looks for the stop file once a second at most."""
        if self._reason is None:
            now = time.monotonic()
            if now >= self._until:
                self._reason = Reason.MAX_MINUTES
            elif self._folder is not None and now >= self._look_again:
                self._look_again = now + 1.0
                with contextlib.suppress(OSError):  # a file system that went read-only says so even of no file
                    (self._folder / _FILE).unlink()
                    self._reason = Reason.FILE
        return self._reason

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within, and only where nothing is lost by it, a signal ends what is waited for.

        Raises:
            Asked: one came, or had come.
        """
        if self.asked() is not None:
            raise Asked
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def mind_saving(self, seconds: float | None) -> None:
        """Warn once, on the first rank, where a save takes so long that launchers would not wait for it."""
        if self._folder is not None and not self._warned and seconds is not None and seconds > _LONG_SAVE_S:
            self._warned = True
            _say(
                f"a save takes {seconds:.0f} s, and launchers kill {_LAUNCHERS_WAIT_S} s after SIGTERM: to stop, send"
                f" the ranks SIGUSR1 earlier, or touch {self._folder / _FILE}, or set run.max_minutes"
            )

    def _drop_old_file(self, path: Path) -> None:
        """A file from before this process was meant for another attempt; one from since then is for this one."""
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < self._born - 1:  # file systems round
                path.unlink()
                _say(f"removed {path}, which is older than this attempt")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._reason is None:
            self._reason = _SIGNALS[signal.Signals(number)]
        if self._raises:
            self._raises = False
            raise Asked

    def _watch(self) -> None:
        """In a thread: read the numbers of signals as they arrive; once a second look for the launcher."""
        while True:
            readable, _, _ = select.select([self._heard], [], [], 1.0)
            for number in os.read(self._heard, 64) if readable else b"":
                if number == 0:
                    return
                # Ranks under torchrun are in sessions of their own. It hands Ctrl-C on; a second one as SIGTERM.
                again = number == signal.SIGTERM and self._ctrl_c and self._launcher.is_torchrun
                self._ctrl_c += number == signal.SIGINT
                if number == signal.SIGINT and self._ctrl_c == 1 and self._folder is not None:
                    _say("stopping after the next step, which will be saved; Ctrl-C again leaves at once")
                if self._ctrl_c > 1 or again:
                    _say("left at once; the newest checkpoint is what there is")
                    os._exit(130)
            if self._reason is None and self._launcher.gone():
                self._reason = Reason.LAUNCHER


def mark_stopped(folder: Path, step: int, reason: str) -> None:
    """Leave `stopped` in a run's folder: the step it was saved at, why it stopped, and when."""
    temporary = folder / f".{STOPPED}.tmp"
    text = json.dumps({"step": step, "reason": reason, "time": time.time()}) + "\n"
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / STOPPED)
    except OSError as error:
        _say(f"{folder / STOPPED} cannot be written: {error.strerror}")


def _say(text: str) -> None:
    """Straight to the console: what a signal interrupted may have been printing. Nobody need be there any more."""
    with contextlib.suppress(OSError):
        os.write(2, f"alasca: {text}\n".encode())
