"""Commands that start other processes, and a Slurm of stand-ins: what the tests of launchers share."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
TRAIN = str(LAUNCH / "train.py")
BIN = Path(sys.executable).parent
SBATCH = ["bash", str(LAUNCH / "slurm.sbatch")]
LOCAL = [str(LAUNCH / "local.sh")]

# As srun does, but on this machine: its own options aside, the command once for each of two nodes.
SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" > srun-argv
while [[ $1 == --* ]]; do shift; done
"$@" & first=$!
"$@" & second=$!
wait "$first" || exit; wait "$second"
"""
SCONTROL = """#!/usr/bin/env bash
case $* in
    "show hostnames node-[a-b]") printf '127.0.0.1\\nnode-b\\n' ;;
    "requeue "*) echo "$2" >> requeued ;;
    *) exit 9 ;;
esac
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def job_with_a_free_port() -> int:
    """A Slurm job number whose port, 20000 + number % 10000, is free here."""
    for number in range(os.getpid() % 10000, os.getpid() % 10000 + 100):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", 20000 + number % 10000))
            return number
    raise AssertionError("no free port")


class Job:
    """One command and everything it starts."""

    def __init__(self, command: Sequence[str], cwd: Path, log: Path, **env: str) -> None:
        self.log, self.env = log, env
        with log.open("w") as out:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"} | env,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def status(self, seconds: float) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {seconds} s: {self.end_of_log()}")

    def end_of_log(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def end(self) -> None:
        # torchrun gives every rank a session of its own, deepspeed leaves orphans in the launcher's group.
        family = []
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.process.pid).children(recursive=True)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


@contextmanager
def ended(*jobs: Job) -> Iterator[None]:
    """Nothing that the jobs started outlives the block."""
    try:
        yield
    finally:
        for job in jobs:
            job.end()


def launch(command: list[str], config: Path, name: str, env: dict[str, str] | None = None) -> Path:
    """Train to the end; returns the folder of the run."""
    extensions = config.parent / f"{name}-extensions"
    done = subprocess.run(
        [*command, TRAIN, str(config), "--run.name", name],
        env={**(os.environ if env is None else env), "TORCH_EXTENSIONS_DIR": str(extensions)},
        capture_output=True,
        text=True,
        timeout=150,
        cwd=config.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list(extensions.glob("*")), "deepspeed compiled something"
    return config.parent / name


def slurm_job(config: Path, name: str, programs: Path) -> Job:
    """slurm.sbatch on two nodes of one rank, submitted in `programs`."""
    for program, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / program).write_text(text)
        (programs / program).chmod(0o755)
    # The script is submitted where the repository is; here, where its launch/ can be reached and a record be left.
    with suppress(FileExistsError):  # submitted again
        (programs / "launch").symlink_to(LAUNCH)
    return Job(
        [*SBATCH, str(config), "--run.name", name],
        programs,
        config.parent / f"{name}.log",
        PATH=f"{programs}:{BIN}:{os.environ['PATH']}",
        SLURM_JOB_ID=str(job_with_a_free_port()),
        SLURM_JOB_NODELIST="node-[a-b]",
        SLURM_JOB_NUM_NODES="2",
        SLURM_CPUS_PER_TASK="3",
        NPROC="1",
        PET_LOCAL_ADDR="127.0.0.1",  # torchrun's --local-addr, for machines that cannot resolve their own name
    )
