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
_FILE = "stop"  # whoever puts it there stops the run; removed when the run has

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
    """This process was asked to stop while `Stop.interruptible` let that end what was waited for."""


class Stop:
    """Listens, within its context, for what asks this process to stop; the loop looks at `asked` where it can act.

    It needs nothing that takes long to import, so that a process can listen from its first moment on. Until the
    processes of the run have met (`hold`) there is nothing to agree on and nothing to save: a signal ends the process
    at once, as launchers expect when another one has failed.

    From then on signals are only noted: whatever is being written gets finished. A second Ctrl-C ends the process at
    once, even where it hangs in a collective: a thread hears it, since Python's own handlers wait for the main thread.
    The same thread takes the end of the launcher for a SIGTERM.

    Args:
        launcher: of this process.
    """

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self._reason: Reason | None = None
        self._listens = self._holds = self._raises = self._leads = False
        self._folder: Path | None = None
        self._born = float(psutil.Process().create_time())
        self._until = math.inf
        self._look_again = 0.0
        self._ctrl_c = 0
        self._warned = False

    def __enter__(self) -> Self:
        self._listens = True
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
        self._listens = False

    def hold(self) -> None:
        """Say that the processes have met, and can agree on a step from now on."""
        self._holds = True

    @contextlib.contextmanager
    def obeyed(self, folder: Path, leads: bool, max_minutes: float | None) -> Iterator[None]:
        """Within, a run acts on `asked`; what came before counts. Begins to listen, if nobody did.

        Args:
            folder: of the run, for the stop file.
            leads: whether this is the first rank.
            max_minutes: since the start of this process; None is no limit.
        """
        self.hold()
        self._folder, self._leads, file = folder, leads, folder / _FILE
        if max_minutes is not None:
            self._until = time.monotonic() + max_minutes * 60 - (time.time() - self._born)
        if leads:
            (folder / STOPPED).unlink(missing_ok=True)
            if file.exists() and not self._is_for_us(file):
                file.unlink(missing_ok=True)
                _say(f"removed {file}, which is older than this attempt")
        with contextlib.nullcontext() if self._listens else self:
            yield
        if leads:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)

    def asked(self) -> Reason | None:
        """Why this process was asked to stop, so far. Cheap; looks for the stop file once a second at most.

        The first rank looks for it; while batches are waited for all do, since they cannot hear of it from each other.
        """
        if self._reason is None:
            now = time.monotonic()
            if now >= self._until:
                self._reason = Reason.MAX_MINUTES
            elif self._folder is not None and (self._leads or self._raises) and now >= self._look_again:
                self._look_again = now + 1.0
                file = self._folder / _FILE
                with contextlib.suppress(OSError):
                    # By now the first rank has removed an old one; the others look on their own.
                    if file.exists() if self._leads else self._is_for_us(file):
                        self._reason = Reason.FILE
        return self._reason

    def pass_on(self) -> None:
        """Cut off what other ranks wait for, where this one alone was asked: they look for the file meanwhile."""
        if self._reason is not None and self._reason > Reason.FILE:
            assert self._folder is not None
            with contextlib.suppress(OSError):
                (self._folder / _FILE).touch()

    @property
    def signalled(self) -> bool:
        """Whether it was a signal that asked."""
        return self._reason in _SIGNALS.values()

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within, and only where nothing is lost by it, whatever asks to stop ends what is waited for.

        Raises:
            Asked: something does, or did.
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
        if self._leads and not self._warned and seconds is not None and seconds > _LONG_SAVE_S:
            assert self._folder is not None
            self._warned = True
            _say(
                f"a save takes {seconds:.0f} s, and launchers kill {_LAUNCHERS_WAIT_S} s after SIGTERM: to stop, send"
                f" the ranks SIGUSR1 earlier, or touch {self._folder / _FILE}, or set run.max_minutes"
            )

    def _is_for_us(self, file: Path) -> bool:
        """Whether a stop file is there, and from since this process began: an older one was for another attempt."""
        with contextlib.suppress(FileNotFoundError):
            return file.stat().st_mtime >= self._born - 1  # file systems round
        return False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._reason is None:
            self._reason = _SIGNALS[signal.Signals(number)]
        if self._raises:
            self._raises = False
            raise Asked

    def _watch(self) -> None:
        """In a thread: read the numbers of signals as they arrive; once a second look for all else."""
        leads = os.environ.get("RANK", "0") == "0"  # known before the processes have met
        main = threading.main_thread().ident
        assert main is not None
        while True:
            readable, _, _ = select.select([self._heard], [], [], 1.0)
            for number in os.read(self._heard, 64) if readable else b"":
                if number == 0:
                    return
                # Ranks under torchrun are in sessions of their own. It hands Ctrl-C on; a second one as SIGTERM.
                again = number == signal.SIGTERM and self._ctrl_c and self.launcher.is_torchrun
                self._ctrl_c += number == signal.SIGINT
                if not self._holds:
                    if leads:
                        _say(f"{signal.Signals(number).name}: left before the run had begun")
                    os._exit(128 + number)
                if number == signal.SIGINT and self._ctrl_c == 1 and leads:
                    _say("stopping after the next step, which will be saved; Ctrl-C again leaves at once")
                if self._ctrl_c > 1 or again:
                    _say("left at once; the newest checkpoint is what there is")
                    os._exit(130)
            if self._reason is None and self.launcher.gone():
                self._reason = Reason.LAUNCHER
            if self._raises and self._in_main and self.asked() is not None:
                signal.pthread_kill(main, signal.SIGUSR1)  # ends what the main thread waits for; the reason stays


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
