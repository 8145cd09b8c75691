"""Two attempts of one run do not write into each other's folder; one that is gone, however, is in nobody's way."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from runs import trained

from pipeline.config import Config
from pipeline.record.track import read_metrics
from pipeline.train.dist import World
from pipeline.train.lock import Lock
from shards.errors import InputError

HOLDS = """
import os, sys, time
from pathlib import Path
from pipeline.train.lock import Lock
lock = Lock(Path(sys.argv[1]))
lock.take(0)
if os.fork() == 0:  # as a data worker that outlives its run for a moment
    time.sleep(60)
    os._exit(0)
print("has it", flush=True)
time.sleep(60)
"""


@contextmanager
def held(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, and a child of it, that has the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", HOLDS, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "has it\n"
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def test_a_second_attempt_is_refused_and_changes_nothing(
    configured: Callable[..., Config], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.train.checkpoints._SECONDS_TO_END", 0.5)
    config = configured(run__name="two", run__max_steps=2)
    trained(config, world)
    before = sorted(str(path) for path in config.folder.rglob("*")), read_metrics(config.folder)
    again = configured(run__name="two", run__resume="auto")
    with held(config.folder / "lock") as process:
        with pytest.raises(InputError, match=rf"two is being written by another attempt.*process {process.pid} on"):
            trained(again, world)
        assert (sorted(str(path) for path in config.folder.rglob("*")), read_metrics(config.folder)) == before
    trained(again, world)  # the lock went with the process, though its child may have lived on


def test_one_that_is_just_ending_is_waited_for(tmp_path: Path) -> None:
    with held(tmp_path / "lock") as process:
        threading.Timer(0.5, process.kill).start()
        lock = Lock(tmp_path / "lock")
        lock.take(20.0)
        assert process.wait(10) == -signal.SIGKILL
        other = [sys.executable, "-c", HOLDS, str(tmp_path / "lock")]
        refused = subprocess.run(other, capture_output=True, text=True, timeout=30)
        assert refused.returncode == 1
        assert f"process {os.getpid()} on" in refused.stderr
        lock.release()
        with held(tmp_path / "lock"):
            pass


def test_a_file_system_without_locks_is_used_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", none)
    Lock(tmp_path / "lock").take(0)
