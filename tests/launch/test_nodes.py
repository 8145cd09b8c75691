"""Two nodes on loopback, and the scripts in launch/: real launchers, one rank a node."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from jobs import BIN, LAUNCH, LOCAL, SBATCH, TRAIN, Job, ended, free_port

from pipeline.record.metrics import timeless
from pipeline.record.track import read_metrics

TOLD = """#!/usr/bin/env bash
leave() {
    echo "$1"
    [[ -z $SAVES ]] || touch "$RUN/stopped"
    exit 1
}
trap 'leave INT' INT
trap 'leave TERM' TERM
[[ ! -e $RUN/stopped ]] || echo "left over"
echo ready
while [[ ! -e $RUN/stop ]]; do sleep 0.05; done
echo stop
touch "$RUN/stopped"
"""

pytestmark = pytest.mark.timeout(200)


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


def test_two_nodes_train_as_one_does(config: Path, two: Path) -> None:
    jobs = deepspeed_nodes(config, "by-nodes")
    with ended(*jobs):
        assert [job.status(80) for job in jobs] == [0, 0], jobs[0].end_of_log()
    run = config.parent / "by-nodes"
    assert [timeless(r) for r in read_metrics(run)] == [timeless(r) for r in read_metrics(two)]
    assert json.loads((run / "summary.json").read_text())["world"] == 2


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
    """The system kills the data workers of the rank that keeps the store, as it does when memory runs out.

    That rank raises, the other node's still hears why, and nothing is left of either.
    """
    jobs = deepspeed_nodes(config, "failed", "--optim.epochs", "2000")
    with ended(*jobs):
        wait_for_records(config.parent / "failed", jobs)
        family = [p for job in jobs for p in psutil.Process(job.process.pid).children(recursive=True)]
        for worker in rank_of(jobs[0]).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                worker.kill()
        assert [job.status(60) for job in jobs] == [1, 1]
        assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    for job in jobs:
        said = job.log.read_text()
        assert re.search(r"alasca: rank 0 on \S+ failed in step \d+: \w+:\n(?s:.*)Traceback", said), said[-6000:]
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


def test_without_a_number_there_is_a_process_for_each_gpu_or_two(config: Path, tmp_path: Path) -> None:
    """Stand-ins for torchrun and for what torch sees; the script is a copy, so that it finds no .venv beside it."""
    (tmp_path / "launch").mkdir()
    script = shutil.copy(LAUNCH / "local.sh", tmp_path / "launch")
    (tmp_path / "torchrun").write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)
    (tmp_path / "torch.py").write_text("import os\nclass cuda:\n    device_count = lambda: int(os.environ['GPUS'])\n")
    file = shutil.copy(config, tmp_path / "a b.toml")
    paths = {"PATH": f"{tmp_path}:{BIN}:{os.environ['PATH']}", "PYTHONPATH": f"{tmp_path}:{LAUNCH.parent}"}
    for gpus, processes in (("0", "2"), ("3", "3")):
        done = subprocess.run(
            [script, str(file), "--run.name", "x"],
            env=paths | {"GPUS": gpus},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        train = str(tmp_path / "launch" / "train.py")
        words = ["--standalone", "--nproc-per-node", processes, train, str(file), "--run.name", "x"]
        assert done.stdout.splitlines() == words


@pytest.mark.parametrize(
    ("name", "saves", "status", "heard"),
    [
        ("SIGINT", "yes", 0, "INT"),
        ("SIGTERM", "yes", 0, "TERM"),
        ("SIGTERM", "", 1, "TERM"),
        ("SIGUSR1", "", 0, "stop"),
    ],
)
def test_local_hands_signals_on_and_tells_a_stop_from_a_failure(
    config: Path, tmp_path: Path, name: str, saves: str, status: int, heard: str
) -> None:
    """A stand-in for torchrun and its ranks: returns 1 of a signal, saved or not, and looks for the stop file."""
    run = tmp_path / "told"
    run.mkdir()
    (run / "stopped").touch()  # of an earlier attempt
    (tmp_path / "torchrun").write_text(TOLD)
    (tmp_path / "torchrun").chmod(0o755)
    (tmp_path / "launch").mkdir()  # where no .venv with another torchrun lies beside it
    script = shutil.copy(LAUNCH / "local.sh", tmp_path / "launch")
    job = Job(
        [str(script), str(config), "--run.dir", str(tmp_path), "--run.name", "told"],
        tmp_path,
        tmp_path / "log",
        PATH=f"{tmp_path}:{BIN}:{os.environ['PATH']}",
        NPROC="1",
        RUN=str(run),
        SAVES=saves,
    )
    with ended(job):
        limit = time.monotonic() + 60
        while "ready" not in job.log.read_text():
            assert job.process.poll() is None, job.end_of_log()
            assert time.monotonic() < limit
            time.sleep(0.02)
        job.process.send_signal(getattr(signal, name))
        assert job.status(30) == status, job.end_of_log()
    assert job.log.read_text().split() == ["ready", heard]


def test_a_script_finds_a_mistake_in_the_configuration_before_it_starts_anything(config: Path) -> None:
    command = [*LOCAL, str(config), "--optim.lrr", "1"]
    env = {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(LAUNCH.parent), "NPROC": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
    says = f"alasca: {config}: unknown key 'optim.lrr'; did you mean 'lr'?\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", says)


@pytest.mark.parametrize("name", ["local.sh", "slurm.sbatch"])
def test_a_script_is_strict_bash(name: str) -> None:
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True, timeout=10)
    assert "\nset -euo pipefail\n" in (LAUNCH / name).read_text()
