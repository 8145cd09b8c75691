"""One command and all that it starts, known by a mark in their environment: also those that it lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self
from uuid import uuid4

import psutil

ROOT = Path(__file__).parents[1]
TRAIN = str(ROOT / "launch" / "train.py")
BIN = Path(sys.executable).parent

_MARK = "ALASCA_DRILL"
_LONGEST_S = 150.0  # that anything waited for may take
_SOON, _LATER = 0.005, 0.1  # seconds between looks at a folder, and at all processes of the machine


class Failed(Exception):
    """A drill did not come to its end."""


class Job:
    """A command in a session of its own, with all output in `log`.

    Args:
        command: words.
        log: file for its output; appended to.
        env: on top of this process's own.
    """

    def __init__(self, command: Sequence[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.log, self._mark = log, uuid4().hex
        self._began = log.stat().st_size if log.exists() else 0
        kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        quiet = {
            "OMP_NUM_THREADS": "1",  # the same sums in every launcher
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "WANDB_ERROR_REPORTING": "false",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }
        with log.open("a") as out:
            self.process = subprocess.Popen(
                command,
                cwd=log.parent,
                env=kept | quiet | {_MARK: self._mark} | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def family(self) -> list[psutil.Process]:
        """All living processes of the job, whoever their parent is by now."""
        return [process for process in psutil.process_iter() if _is_marked(process, self._mark)]

    def ranks(self) -> list[psutil.Process]:
        """The living training processes, by rank."""
        found = [process for process in self.family() if _is_rank(process)]
        return sorted(found, key=lambda process: int(_environ(process).get("RANK", "0")))

    def wait_for_ranks(self, world: int) -> None:
        """Wait until all ranks are there."""
        self.wait_for(lambda: len(self.ranks()) == world, f"{world} ranks", _LATER)

    def wandb(self) -> list[psutil.Process]:
        """What wandb runs beside the process that speaks to it."""
        return [process for process in self.family() if "wandb-core" in "".join(_words(process)[:1])]

    def text(self) -> str:
        """What this command wrote so far."""
        return self.log.read_bytes()[self._began :].decode(errors="replace")

    def status(self, seconds: float) -> int:
        """Wait for the command's own end.

        Raises:
            Failed: it takes longer.
        """
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"still running after {seconds:.0f} s:\n{self.text()[-3000:]}") from None

    def wait_for(self, condition: Callable[[], object], what: str, every: float = _SOON) -> None:
        """Look again and again.

        Raises:
            Failed: the command ended before, or it takes longer.
        """
        limit = time.monotonic() + _LONGEST_S
        while not condition():
            if self.process.poll() is not None:
                raise Failed(f"ended with {self.process.returncode} before {what}:\n{self.text()[-3000:]}")
            if time.monotonic() > limit:
                raise Failed(f"no {what} within {_LONGEST_S:.0f} s:\n{self.text()[-3000:]}")
            time.sleep(every)

    def left(self, seconds: float) -> list[str]:
        """Command lines of those that still live so long after."""
        return gone(self.family, seconds)

    def end(self) -> None:
        """Kill whatever is left, each by its number."""
        limit = time.monotonic() + 20
        while family := self.family():
            kill(family)
            if time.monotonic() > limit:
                break
            time.sleep(0.05)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)


def gone(living: Callable[[], Iterable[psutil.Process]], seconds: float) -> list[str]:
    """Wait until nobody lives any more; returns the command lines of those that do after so many seconds."""
    limit = time.monotonic() + seconds
    while (left := list(living())) and time.monotonic() < limit:
        time.sleep(_LATER)
    return [f"{process.pid} {' '.join(_words(process))[:120]}" for process in left]


def kill(processes: Iterable[psutil.Process], number: int = signal.SIGKILL) -> None:
    """Send a signal to each that is still there."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


@contextmanager
def together(*jobs: Job) -> Iterator[None]:
    """Nothing that the jobs started outlives the block."""
    try:
        yield
    finally:
        for job in jobs:
            job.end()


def lives(process: psutil.Process) -> bool:
    """Whether it is there, and no zombie."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _environ(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except (psutil.Error, OSError):
        return {}


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except (psutil.Error, OSError):
        return []


def _is_marked(process: psutil.Process, mark: str) -> bool:
    return _environ(process).get(_MARK) == mark and lives(process)


def _is_rank(process: psutil.Process) -> bool:
    """Its first word after Python is the script; a launcher's is its own module."""
    words = [word for word in _words(process)[1:] if word != "-u"]
    return words[:1] == [TRAIN]
