"""Two nodes on loopback, and the scripts in launch/: real launchers, one rank a node."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.record.metrics import timeless
from pipeline.record.track import read_metrics
from shards.manifest import Manifest

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
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
[[ $* == "show hostnames node-[a-b]" ]] || exit 9
printf '127.0.0.1\\nnode-b\\n'
"""

pytestmark = pytest.mark.timeout(200)


@pytest.fixture(scope="module")
def config(photos: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five steps, every one recorded."""
    folder = tmp_path_factory.mktemp("nodes")
    file = folder / "tiny.toml"
    file.write_text(
        f"""
        run = {{ dir = "{folder}" }}
        data = {{ train = "{photos.root}", lanes = 4, micro_batch = 6, crop = 16, workers = 1 }}
        model = {{ name = "resnet20" }}
        optim = {{ epochs = 1, lr = 0.0001, schedule = "constant" }}
        track = {{ every = 1, wandb = "disabled" }}
        """
    )
    return file


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
        self.log = log
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


def deepspeed_nodes(config: Path, name: str, *words: str) -> list[Job]:
    """Both agents, with the hosts of the example but one slot each."""
    hostfile = config.parent / "hostfile"
    hostfile.write_text((LAUNCH / "hostfile.example").read_text().replace("slots=8", "slots=1"))
    hosts = ["--hostfile", str(hostfile), "--no_ssh", "--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    training = [TRAIN, str(config), "--run.name", name, *words]
    return [
        Job(
            [str(BIN / "deepspeed"), *hosts, "--node_rank", str(node), *training],
            config.parent,
            config.parent / f"{name}-{node}.log",
        )
        for node in range(2)
    ]


def torchrun_nodes(config: Path, name: str, programs: Path) -> Job:
    """Both agents, as slurm.sbatch starts them."""
    for program, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / program).write_text(text)
        (programs / program).chmod(0o755)
    # The script is submitted where the repository is; here, where its launch/ can be reached and a record be left.
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


def lasting(run: Path) -> list[dict[str, Any]]:
    return [timeless(record) for record in read_metrics(run)]


def test_two_nodes_train_the_same_under_torchrun_and_deepspeed(config: Path, tmp_path: Path) -> None:
    by_torchrun = torchrun_nodes(config, "by-torchrun", tmp_path)
    with ended(by_torchrun):
        assert by_torchrun.status(80) == 0, by_torchrun.end_of_log()
    argv = (tmp_path / "srun-argv").read_text().splitlines()
    assert {"--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=3", "--kill-on-bad-exit=1"} == {*argv[:4]}
    assert argv[-4:] == ["launch/train.py", str(config), "--run.name", "by-torchrun"]

    by_deepspeed = deepspeed_nodes(config, "by-deepspeed")
    with ended(*by_deepspeed):
        assert [job.status(80) for job in by_deepspeed] == [0, 0], by_deepspeed[0].end_of_log()

    records = [lasting(config.parent / name) for name in ("by-torchrun", "by-deepspeed")]
    assert [r["step"] for r in records[0]] == [1, 2, 3, 4, 5]
    assert all(r["loss"] is not None for r in records[0])
    assert records[0] == records[1]
    for name in ("by-torchrun", "by-deepspeed"):
        assert json.loads((config.parent / name / "summary.json").read_text())["world"] == 2


def test_a_lost_node_is_named_by_the_other(config: Path) -> None:
    """DeepSpeed's agents know nothing of each other: the rank that is left has to end by itself."""
    left, struck = jobs = deepspeed_nodes(config, "struck", "--optim.epochs", "2000", "--dist.heartbeat", "6")
    with ended(*jobs):
        wait_for_records(config.parent / "struck", jobs)
        struck.end()
        assert left.status(60) == 1
    assert not (config.parent / "struck" / "summary.json").exists()
    said = left.log.read_text()
    assert re.search(r"alasca: rank 1 on \S+ (gave no sign of life|\(process \d+\) ended)", said), left.end_of_log()
    assert "last seen in step" in said


def test_a_failure_is_told_on_the_other_node(config: Path) -> None:
    """The rank that keeps the store fails, its data workers killed: the other node's rank still hears why."""
    jobs = deepspeed_nodes(config, "failed", "--optim.epochs", "2000")
    with ended(*jobs):
        wait_for_records(config.parent / "failed", jobs)
        for worker in rank_of(jobs[0]).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                worker.kill()
        assert [job.status(60) for job in jobs] == [1, 1]
    for job in jobs:
        said = job.log.read_text()
        assert re.search(r"alasca: rank 0 on \S+ failed in step \d+: data:\n.*Traceback", said), job.end_of_log()
        assert said.count("alasca: rank") == 1


def wait_for_records(run: Path, jobs: list[Job]) -> None:
    metrics = run / "metrics.jsonl"
    limit = time.monotonic() + 80
    while not (metrics.exists() and metrics.stat().st_size):
        assert all(job.process.poll() is None for job in jobs), "".join(job.end_of_log() for job in jobs)
        assert time.monotonic() < limit
        time.sleep(0.05)


def rank_of(job: Job) -> psutil.Process:
    """The training process of a node, not its launcher before it nor its data workers after it."""
    for process in psutil.Process(job.process.pid).children(recursive=True):
        # The launcher's command line ends with that of the rank, and early on it may share its environment too.
        if process.environ().get("RANK") is not None and "deepspeed.launcher.launch" not in process.cmdline():
            return process
    raise AssertionError(job.end_of_log())


def test_local_starts_as_many_processes_as_it_is_told(config: Path) -> None:
    job = Job([*LOCAL, config.name, "--run.name", "local"], config.parent, config.parent / "local.log", NPROC="2")
    with ended(job):
        assert job.status(80) == 0, job.end_of_log()
    assert json.loads((config.parent / "local" / "summary.json").read_text())["world"] == 2


@pytest.mark.parametrize(
    ("command", "env", "says"),
    [
        (LOCAL, {}, "local.sh: usage: [NPROC=N] launch/local.sh CONFIG [--section.key VALUE ...]"),
        (
            [*LOCAL, "--run.name", "x"],
            {},
            "local.sh: usage: [NPROC=N] launch/local.sh CONFIG [--section.key VALUE ...]",
        ),
        ([*LOCAL, "x.toml"], {"NPROC": "two"}, "local.sh: NPROC = 'two': want a number of processes, 1 or more"),
        (SBATCH, {}, "slurm.sbatch: usage: sbatch launch/slurm.sbatch CONFIG [--section.key VALUE ...]"),
        (
            [*SBATCH, "x.toml"],
            {"SLURM_JOB_ID": ""},
            "slurm.sbatch: not a Slurm job: start it with sbatch launch/slurm.sbatch CONFIG",
        ),
        (
            [*SBATCH, "x.toml"],
            {"SLURM_JOB_ID": "1"},
            "slurm.sbatch: submit it in the repository's folder; {cwd} has no launch/train.py",
        ),
    ],
)
def test_a_mistake_with_a_script_is_one_line(
    command: list[str], env: dict[str, str], says: str, tmp_path: Path
) -> None:
    path = f"{BIN}:{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=tmp_path, env={"PATH": path} | env, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", says.format(cwd=tmp_path) + "\n")


def test_without_a_number_there_is_a_process_for_each_gpu_or_two(tmp_path: Path) -> None:
    """Stand-ins for torchrun and for what torch sees; the script is a copy, so that it finds no .venv beside it."""
    (tmp_path / "launch").mkdir()
    script = shutil.copy(LAUNCH / "local.sh", tmp_path / "launch")
    (tmp_path / "torchrun").write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)
    (tmp_path / "python").symlink_to(sys.executable)
    (tmp_path / "torch.py").write_text("import os\nclass cuda:\n    device_count = lambda: int(os.environ['GPUS'])\n")
    for gpus, processes in (("0", "2"), ("3", "3")):
        done = subprocess.run(
            [script, "a b.toml", "--run.name", "x"],
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path), "GPUS": gpus},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        train = str(tmp_path / "launch" / "train.py")
        words = ["--standalone", "--nproc-per-node", processes, train, "a b.toml", "--run.name", "x"]
        assert done.stdout.splitlines() == words


@pytest.mark.parametrize("name", ["local.sh", "slurm.sbatch"])
def test_a_script_is_strict_bash(name: str) -> None:
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True, timeout=10)
    assert "\nset -euo pipefail\n" in (LAUNCH / name).read_text()
