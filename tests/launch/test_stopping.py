"""Real launchers are told to stop: the ranks save, and what goes on ends as a run that nobody disturbed."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from jobs import BIN, LAUNCH, TRAIN, Job, ended, free_port, slurm_job
from safetensors.torch import load_file

from pipeline.record.metrics import timeless
from pipeline.record.track import read_metrics
from pipeline.train import packed

LAST = "checkpoints/step-000000040"

pytestmark = pytest.mark.timeout(300)


def local(config: Path, name: str, *words: str) -> Job:
    log = config.parent / f"{name}.log"
    return Job([str(LAUNCH / "local.sh"), str(config), "--run.name", name, *words], config.parent, log, NPROC="2")


def finishes(job: Job) -> None:
    with ended(job):
        assert job.status(100) == 0, job.end_of_log()


def ends_as(run: Path, straight: Path, *, saved_more: bool) -> None:
    """Bit for bit; but for BatchNorm's running statistics after a stop: its save averages them, which rounds."""
    for file in ("model.safetensors", "ema.safetensors"):
        ours, theirs = (load_file(folder / LAST / file) for folder in (run, straight))
        for name, tensor in ours.items():
            if saved_more and "running" in name:
                torch.testing.assert_close(tensor, theirs[name], msg=name)
            else:
                assert torch.equal(tensor, theirs[name]), name
    for rank in range(2):
        banks = [packed.read(f / LAST / f"rank-{rank:05d}.safetensors")["alasca"]["rows"] for f in (run, straight)]
        assert torch.equal(*banks)
    assert not (run / "stopped").exists()
    lines = [[timeless(r) for r in read_metrics(f)] for f in (run, straight)]
    for record, other in zip(*lines, strict=True):
        if saved_more and record["kind"] == "eval":
            assert record.pop("loss") == pytest.approx(other.pop("loss"), rel=1e-4)
        assert record == other


def begun(job: Job, run: Path, step: int = 4) -> None:
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(read_metrics(run)) >= step, job)


def wait_for(condition: Callable[[], bool], job: Job) -> None:
    limit = time.monotonic() + 100
    while not condition():
        assert job.process.poll() is None, job.end_of_log()
        assert time.monotonic() < limit, job.end_of_log()
        time.sleep(0.02)


def test_local_passes_a_signal_on_and_calls_it_a_success(config: Path, two: Path) -> None:
    run = config.parent / "told"
    job = local(config, "told")
    with ended(job):
        begun(job, run)
        job.process.send_signal(signal.SIGTERM)
        assert job.status(60) == 0, job.end_of_log()
        stopped = json.loads((run / "stopped").read_text())
        assert stopped["reason"] == "SIGTERM"
        step = stopped["step"]
        assert [p.name for p in run.glob("checkpoints/*")][-1:] == [f"step-{step:09d}"]
        log = job.log.read_text()
        assert f"told: stopped at step {step} of 40 (SIGTERM); to go on:" in log
        assert log.split("to go on:\n")[1].splitlines()[0].split()[-2:] == ["--resume", "auto"]

    finishes(local(config, "told", "--resume", "auto"))
    ends_as(run, two, saved_more=True)


def test_ranks_whose_runner_was_terminated_save_and_leave(config: Path) -> None:
    """deepspeed's runner dies of SIGTERM and tells nobody."""
    run = config.parent / "orphans"
    command = [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", str(free_port())]
    words = [TRAIN, str(config), "--run.name", "orphans", "--optim.epochs", "2000"]
    job = Job([*command, *words], config.parent, config.parent / "orphans.log")
    with ended(job):
        begun(job, run)
        family = psutil.Process(job.process.pid).children(recursive=True)
        job.process.terminate()
        assert job.status(20) != 0
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive, job.end_of_log()
    stopped = json.loads((run / "stopped").read_text())
    assert stopped["reason"] == "its launcher is gone"
    assert "deepspeed --num_accelerators 2" in job.log.read_text().split("to go on:\n")[1]
    assert (run / f"checkpoints/step-{stopped['step']:09d}/index.json").exists()
    assert "Traceback" not in job.log.read_text()


def test_a_signal_to_all_that_deepspeed_started_ends_in_a_save(config: Path) -> None:
    """Its `launch` sends SIGTERM to the ranks one after the other, and to all that they started."""
    run = config.parent / "whole"
    command = [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", str(free_port())]
    words = [TRAIN, str(config), "--run.name", "whole", "--optim.epochs", "2000"]
    job = Job([*command, *words], config.parent, config.parent / "whole.log")
    with ended(job):
        begun(job, run)
        below = psutil.Process(job.process.pid).children()
        (launch,) = [process for process in below if "deepspeed.launcher.launch" in process.cmdline()]
        launch.terminate()
        job.status(60)
    stopped = json.loads((run / "stopped").read_text())
    assert stopped["reason"] == "SIGTERM"
    assert (run / f"checkpoints/step-{stopped['step']:09d}/index.json").exists()
    assert "Traceback" not in job.log.read_text()


def test_slurm_stops_ahead_of_time_requeues_and_goes_on(config: Path, two: Path, tmp_path: Path) -> None:
    run = config.parent / "queued"
    first = slurm_job(config, "queued", tmp_path)
    with ended(first):
        begun(first, run)
        first.process.send_signal(signal.SIGUSR1)
        assert first.status(60) == 0, first.end_of_log()
    number = first.env["SLURM_JOB_ID"]
    assert (tmp_path / "requeued").read_text() == f"{number}\n"
    assert json.loads((run / "stopped").read_text())["reason"] == "a stop file"

    again = slurm_job(config, "queued", tmp_path)
    finishes(again)
    argv = (tmp_path / "srun-argv").read_text().splitlines()
    assert {"--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=3", "--kill-on-bad-exit=1"} == {*argv[:4]}
    assert argv[-6:] == ["launch/train.py", str(config), "--run.name", "queued", "--resume", "auto"]
    assert json.loads((run / "summary.json").read_text())["world"] == 2
    assert (tmp_path / "requeued").read_text() == f"{number}\n"  # no more
    ends_as(run, two, saved_more=True)


def test_after_a_rank_was_killed_torchruns_restart_ends_as_if_nothing_had_happened(config: Path, two: Path) -> None:
    run = config.parent / "restarted"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["--max-restarts", "1", TRAIN, str(config), "--run.name", "restarted"]
    job = Job([*command, *words], config.parent, config.parent / "restarted.log")
    with ended(job):
        wait_for(lambda: (run / "checkpoints/step-000000010/index.json").exists(), job)
        ranks = [p for p in psutil.Process(job.process.pid).children() if TRAIN in p.cmdline()]
        os.kill(ranks[1].pid, signal.SIGKILL)
        assert job.status(120) == 0, job.end_of_log()
    assert "restart 1 of this job: on from the newest checkpoint" in job.log.read_text()
    ends_as(run, two, saved_more=False)
