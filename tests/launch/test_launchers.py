"""Real launchers, real ranks, real hangs: the same training whoever starts it and in how many processes."""

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from jobs import TRAIN, launch
from safetensors.torch import load_file

from pipeline.model import backbone
from pipeline.record.track import read_metrics
from pipeline.train import packed
from shards.manifest import Manifest
from tests.conftest import unlaunched

pytestmark = pytest.mark.timeout(300)

ALIKE = 20  # steps; from then on rounding has flipped too many ReLUs for runs of different worlds to be compared


def torchrun(ranks: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]


@pytest.fixture(scope="module")
def alone(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain python: one process, no launcher's environment, no compiler to be found."""
    empty = tmp_path_factory.mktemp("no-programs")
    env = {"PATH": str(empty), "HOME": str(empty), "OMP_NUM_THREADS": "1", "DS_SKIP_CUDA_CHECK": "1"}
    return launch([sys.executable], config, "alone", env)


@pytest.fixture(scope="module")
def four(config: Path) -> Path:
    return launch(torchrun(4), config, "four")


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    return [r for r in read_metrics(run) if r["kind"] == kind]


def test_python_deepspeed_and_torchrun_train_the_same(alone: Path, two: Path, four: Path) -> None:
    one = lines(alone, "train")
    assert [r["step"] for r in one] == list(range(1, 41))
    for other in (lines(two, "train"), lines(four, "train")):
        assert [r["samples"] for r in other] == [r["samples"] for r in one]
        for name in ("loss", "loss/base", "loss/aux", "confidence"):
            ours, theirs = ([r[name] for r in run[:ALIKE]] for run in (other, one))
            assert ours == pytest.approx(theirs, abs=1e-3)
        # Made of gradients, which jump where a ReLU flips. Were its strength to depend on ranks, it would be half.
        penalties = [[r["loss/penalty"] for r in run[:ALIKE]] for run in (other, one)]
        assert penalties[0] == pytest.approx(penalties[1], rel=0.02)
        assert [r["lr"] for r in other] == [r["lr"] for r in one]
    evaluations = [next(r for r in lines(run, "eval") if r["step"] == ALIKE) for run in (alone, two, four)]
    assert [e["images"] for e in evaluations] == [47, 47, 47]
    assert [e["loss"] for e in evaluations] == pytest.approx([evaluations[0]["loss"]] * 3, abs=1e-3)


def test_weights_and_statistics_agree_between_worlds(alone: Path, two: Path, four: Path) -> None:
    for file in ("ema.safetensors", "model.safetensors"):
        models = [load_file(run / f"checkpoints/step-{ALIKE:09d}" / file) for run in (alone, two, four)]
        assert any("running_mean" in name for name in models[0])
        for other in models[1:]:
            for name, tensor in models[0].items():
                torch.testing.assert_close(other[name], tensor, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    # Not because nothing moved: the changes themselves agree.
    torch.manual_seed(0)
    start = backbone.build("resnet20", 3, heads="light").state_dict()
    weights = [name for name, tensor in start.items() if tensor.dim() == 4]
    moved = [torch.cat([(model[n] - start[n]).flatten() for n in weights]) for model in models]
    assert moved[0].norm() > 0.01
    for other in moved[1:]:
        assert (other - moved[0]).norm() < 0.02 * moved[0].norm()
    banks = []
    for run, world in ((alone, 1), (two, 2), (four, 4)):
        files = [run / f"checkpoints/step-{ALIKE:09d}/rank-{rank:05d}.safetensors" for rank in range(world)]
        rows = [packed.read(file)["alasca"]["rows"] for file in files]
        banks.append(torch.cat(rows))
    assert banks[0].abs().sum() > 0
    for other in banks[1:]:
        torch.testing.assert_close(other, banks[0], atol=2e-3, rtol=1e-3)


def test_a_run_is_evaluated_and_probed_from_the_command_line(
    alone: Path, photos: Manifest, clean_photos: Manifest, tmp_path: Path
) -> None:
    def printed(*words: str) -> list[list[str]]:
        command = [sys.executable, "-m", "pipeline", *words]
        done = subprocess.run(command, env=unlaunched(), capture_output=True, text=True, timeout=150, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return [line.split() for line in done.stdout.splitlines()]

    file = tmp_path / "errors.json"
    figures = dict(printed("eval", str(alone), "--data", str(clean_photos.root), "--class-errors", str(file)))
    last = lines(alone, "eval")[-1]
    assert figures["images"] == "47" and figures["main/top1"] == f"{last['main/top1']:.2%}"
    errors = json.loads(file.read_text())
    counts = np.bincount(clean_photos.labels)
    wrong = sum(errors[name] * n for name, n in zip(clean_photos.classes, counts, strict=True))
    assert wrong / 47 == pytest.approx(1 - last["main/top1"], abs=1e-4)
    table = printed("probe", str(alone), "--train", str(photos.root), "--test", str(clean_photos.root))
    assert [row[0] for row in table[2:]] == ["stage", "stage1", "stage2", "stage3"]
    assert all(row[3].endswith("%") for row in table[3:])


def test_a_suspended_rank_is_named(config: Path) -> None:
    words = ["--run.name", "suspended", "--optim.epochs", "500", "--dist.heartbeat", "6"]
    job = subprocess.Popen(
        [*torchrun(2), TRAIN, str(config), *words], stderr=subprocess.PIPE, text=True, cwd=config.parent
    )
    try:
        wait_for(lambda: len(lines(config.parent / "suspended", "train")) > 3, job)
        stopped = psutil.Process(a_rank_of(job.pid))
        others = [p for p in psutil.Process(job.pid).children() if p.pid != stopped.pid]
        stopped.suspend()
        _, alive = psutil.wait_procs(others, timeout=40)
        assert not alive
        stopped.resume()
        _, errors = job.communicate(timeout=40)
    finally:
        end(job)
    assert job.returncode == 1
    assert "gave no sign of life for 6 s: killed, suspended" in errors, errors[-2000:]
    assert "last seen in step" in errors


def test_a_hang_ends_after_the_timeout_and_says_where(config: Path) -> None:
    """The data workers of a rank stand still: its main thread waits for them, and the other rank for it."""
    words = ["--run.name", "hung", "--optim.epochs", "500", "--dist.timeout", "20"]
    log = config.parent / "hung.log"
    with log.open("w") as out:
        job = subprocess.Popen([*torchrun(2), TRAIN, str(config), *words], stderr=out, cwd=config.parent)
    standing: list[psutil.Process] = []
    try:
        wait_for(lambda: len(lines(config.parent / "hung", "train")) > 3, job)
        standing = psutil.Process(a_rank_of(job.pid)).children(recursive=True)
        for worker in standing:
            worker.suspend()
        job.wait(60)
    finally:
        for worker in standing:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        end(job)
    assert job.returncode == 1
    errors = log.read_text()
    assert re.search(r"alasca: rank [01] did not move for 20 s \(dist.timeout\)", errors), errors[-5000:]
    table = errors[errors.index("(dist.timeout)") :].splitlines()
    assert [row.split()[3] for row in table[2:4]] == ["step", "data"], table[:9]
    assert errors.count("what its threads were doing:") == 2
    assert "host_batch = next(self.feed)" in errors


def end(job: "subprocess.Popen[Any]") -> None:
    """End a launcher and everything below it; its ranks are in sessions of their own."""
    if job.poll() is None:
        family = psutil.Process(job.pid).children(recursive=True)
        for process in [*family, job]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        job.wait()


def wait_for(condition: Callable[[], bool], job: "subprocess.Popen[Any]") -> None:
    limit = time.monotonic() + 100
    while not condition():
        assert job.poll() is None, (job.communicate()[1] or "")[-3000:]
        assert time.monotonic() < limit
        time.sleep(0.02)


def a_rank_of(launcher: int) -> int:
    """A training process that the launcher started, not one of its data workers."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    ranks = [int(pid) for pid in children if TRAIN in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(ranks) == 2, ranks
    return ranks[1]


def test_a_mistake_under_a_launcher_is_one_line_of_ours(config: Path) -> None:
    done = subprocess.run(
        [*torchrun(2), TRAIN, str(config), "--run.name", "wrong", "--data.lanes", "3"],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=config.parent,
        check=False,
    )
    assert done.returncode == 1  # the launcher's own
    ours = [line for line in done.stderr.splitlines() if line.startswith("alasca: ")]
    assert ours == [
        "alasca: 2 processes cannot share data.lanes = 3 equally: start 1, 3 of them,"
        " or set data.lanes to a multiple of 2"
    ]
    assert "exitcode  : 2" in done.stderr
    assert not (config.parent / "wrong").exists()
