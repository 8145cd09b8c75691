"""What a job started is found, whoever lost it, and ended."""

import os
import sys
from pathlib import Path

import psutil
import pytest

from drills.job import Failed, Job

# A launcher that dies and leaves a process in a session of its own, as deepspeed's does.
LEAVES = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(child.pid, flush=True)
"""


def test_an_orphan_is_named_and_ended(tmp_path: Path) -> None:
    with Job([sys.executable, "-c", LEAVES], tmp_path / "log") as job:
        assert job.status(20) == 0
        orphan = int(job.text())
        assert [process.pid for process in job.family()] == [orphan]
        (words,) = job.left(0.2)
        assert words.startswith(f"{orphan} ") and "time.sleep(60)" in words
    assert job.left(0) == []
    assert not psutil.pid_exists(orphan) or psutil.Process(orphan).status() == psutil.STATUS_ZOMBIE


def test_another_jobs_processes_are_left_alone(tmp_path: Path) -> None:
    waits = [sys.executable, "-c", "import time; time.sleep(60)"]
    with Job(waits, tmp_path / "a") as one, Job(waits, tmp_path / "b") as other:
        one.end()
        assert one.process.poll() is not None
        assert [process.pid for process in other.family()] == [other.process.pid]
        assert os.getpid() not in [process.pid for process in other.family()]


def test_a_wait_ends_with_the_command_and_says_what_it_wrote(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("of an earlier attempt\n")
    ends = [sys.executable, "-c", "print('why'); raise SystemExit(3)"]
    with (
        Job(ends, tmp_path / "log") as job,
        pytest.raises(Failed, match=r"ended with 3 before the moment:\nwhy"),
    ):
        job.wait_for(lambda: False, "the moment")


def test_a_command_that_does_not_end_is_told(tmp_path: Path) -> None:
    waits = "import time; print('there', flush=True); time.sleep(60)"
    with Job([sys.executable, "-c", waits], tmp_path / "log") as job:
        job.wait_for(lambda: "there" in job.text(), "the first word")
        with pytest.raises(Failed, match=r"still running after 0 s:\nthere"):
            job.status(0.1)
