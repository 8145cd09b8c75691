"""A process that is killed between two micro-batches of a step: the run goes on as if it had never been."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import trained

from pipeline.config import Config
from pipeline.record.metrics import timeless
from pipeline.record.track import read_metrics
from pipeline.train.checkpoint import newest
from pipeline.train.dist import World
from tests.conftest import unlaunched

ROOT = Path(__file__).parents[2]

# A run as launch/train.py starts it. Two of its four lanes have left gradients, statistics and rows of the bank behind.
KILLED = """
import os, signal, sys, time
from pathlib import Path
from pipeline.cli import run
from pipeline.train.engine import Engine

backward, seen = Engine.backward, 0
saved = Path(sys.argv[1], "checkpoints/step-000000007/index.json")

def kill(self, loss):
    global seen
    backward(self, loss)
    seen += 1
    if seen == 7 * 4 + 2:
        while not saved.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

Engine.backward = kill
run(["train", *sys.argv[2:]])
"""


@pytest.mark.timeout(120)
def test_a_kill_within_a_step_costs_that_step_alone(
    configured: Callable[..., Config], world: World, tmp_path: Path
) -> None:
    changes = {"checkpoint__every_steps": 1, "track__every": 1, "optim__ema": 0.9, "optim__nesterov": True}
    config = configured(run__name="killed", **changes)
    file = tmp_path / "killed.toml"
    file.write_text(config.to_toml())
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(config.folder), str(file)],
        env=unlaunched() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    last = newest(config.folder / "checkpoints")
    assert last is not None and last.name == "step-000000007"

    resumed = trained(configured(run__name="killed", run__resume="auto", **changes), world)
    straight = trained(configured(run__name="straight", **changes), world)
    assert (resumed.start, straight.start) == (7, 0)
    folders = [run.config.folder / "checkpoints/step-000000010" for run in (resumed, straight)]
    names = [sorted(os.listdir(folder)) for folder in folders]
    assert names[0] == names[1]
    assert len(names[0]) == 5
    for name in set(names[0]) - {"index.json"}:
        assert len({(folder / name).read_bytes() for folder in folders}) == 1, name
    records = [[timeless(r) for r in read_metrics(run.config.folder)] for run in (resumed, straight)]
    assert records[0] == records[1]
    assert [r["step"] for r in records[0] if r["kind"] == "train"] == list(range(1, 11))
