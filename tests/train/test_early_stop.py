"""Asked to stop before the first step: while it starts, before its loop, while it waits for its first batch."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from runs import trained

from pipeline.config import Config
from pipeline.train.dist import World
from pipeline.train.inputs import Inputs
from pipeline.train.launcher import Launcher
from pipeline.train.loop import Training
from pipeline.train.stop import Asked, Reason, Stop
from tests.conftest import unlaunched

ROOT = Path(__file__).parents[2]

# A run as launch/train.py starts it, told to stop as soon as its processes have met.
TOLD = """
import os, signal, sys
from pipeline.cli import run
from pipeline.train.checkpoints import Checkpoints

meet = Checkpoints.meet

def told(self):
    os.kill(os.getpid(), signal.SIGTERM)
    meet(self)

Checkpoints.meet = told
run(["train", *sys.argv[1:]])
"""

Configured = Callable[..., Config]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_while_it_starts_is_told_and_obeyed_at_once(configured: Configured, tmp_path: Path, name: str) -> None:
    config = configured()
    file = tmp_path / "starting.toml"
    file.write_text(config.to_toml())
    command = [sys.executable, "-X", "importtime", str(ROOT / "launch/train.py"), str(file)]
    process = subprocess.Popen(command, env=unlaunched(), stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        next(line for line in process.stderr if "torch" in line)  # the import that takes longest has begun
        process.send_signal(getattr(signal, name))
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + getattr(signal, name)
    assert f"alasca: {name}: left before the run had begun\n" in said
    assert not config.folder.exists()


def test_what_came_before_the_run_could_act_counts(configured: Configured, world: World) -> None:
    """As where the processes have met, and still load their checkpoint."""
    config = configured()
    with Stop(Launcher()) as stop:
        stop.hold()
        signal.raise_signal(signal.SIGUSR1)
        training = Training(config, Inputs.open(config, 1), world, stop=stop)
        training.run()
        training.close()
    assert json.loads((config.folder / "stopped").read_text())["reason"] == "SIGUSR1"
    assert not list(config.folder.glob("checkpoints/*"))
    assert not (config.folder / "summary.json").exists()
    assert trained(configured(run__resume="auto"), world).start == 0
    assert (config.folder / "summary.json").exists()


def test_once_the_processes_have_met_a_signal_waits_for_the_run(configured: Configured, tmp_path: Path) -> None:
    config = configured()
    file = tmp_path / "told.toml"
    file.write_text(config.to_toml())
    ended = subprocess.run(
        [sys.executable, "-c", TOLD, str(file)],
        env=unlaunched() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads((config.folder / "stopped").read_text())["reason"] == "SIGTERM"
    assert "stopped at step 0 of 10 (SIGTERM); to go on:\n" in ended.stderr


def _wait(stop: Stop) -> None:
    with stop.interruptible():
        signal.raise_signal(signal.SIGTERM)
        time.sleep(30)


def test_a_wait_for_the_first_batch_ends_with_a_signal(tmp_path: Path) -> None:
    with Stop(Launcher()) as stop, stop.obeyed(tmp_path, True, None):
        with stop.interruptible():
            pass
        with pytest.raises(Asked):
            _wait(stop)
        assert stop.asked() is Reason.SIGTERM
        signal.raise_signal(signal.SIGUSR1)  # outside it is only noted; the first reason stays
        assert stop.asked() is Reason.SIGTERM
        with pytest.raises(Asked), stop.interruptible():
            raise AssertionError("not reached")


@pytest.mark.parametrize(
    ("leads", "asks"),
    [(True, Reason.FILE), (False, Reason.FILE), (False, Reason.MAX_MINUTES), (True, Reason.LAUNCHER)],
)
def test_a_wait_for_the_first_batch_ends_with_whatever_else_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leads: bool, asks: Reason
) -> None:
    """On every rank: while they wait for data they cannot hear of it from each other."""
    launcher = Launcher()
    age = time.time() - psutil.Process().create_time()
    minutes = (age + 0.5) / 60 if asks is Reason.MAX_MINUTES else None
    with Stop(launcher) as stop, stop.obeyed(tmp_path, leads, minutes):
        if asks is Reason.FILE:
            threading.Timer(0.2, (tmp_path / "stop").touch).start()
        elif asks is Reason.LAUNCHER:
            monkeypatch.setattr(launcher, "gone", lambda: True)
        with pytest.raises(Asked), stop.interruptible():
            time.sleep(60)
        assert stop.asked() is asks
    assert (tmp_path / "stop").exists() == (asks is Reason.FILE and not leads)


def test_who_is_asked_alone_ends_the_wait_of_the_others(tmp_path: Path) -> None:
    """A signal reaches one rank: it passes on that it was told, and the first rank removes what it passed on by."""
    with Stop(Launcher()) as told, told.obeyed(tmp_path, False, None):
        told.pass_on()
        assert not (tmp_path / "stop").exists(), "nobody asked"
        with pytest.raises(Asked):
            _wait(told)
        told.pass_on()
        with Stop(Launcher()) as first, first.obeyed(tmp_path, True, None):
            with pytest.raises(Asked), first.interruptible():
                raise AssertionError("not reached")
            assert first.asked() is Reason.FILE < Reason.SIGTERM, "the ranks agree on the signal"
    assert not (tmp_path / "stop").exists()
