"""What another attempt of a run goes on with, and the command that starts it."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import trained

from pipeline.config import Config
from pipeline.train.dist import World
from pipeline.train.launcher import Launcher, resuming
from pipeline.train.restarts import Restarts
from shards.errors import InputError

Configured = Callable[..., Config]


def test_torchruns_restart_goes_on_with_its_own_run_only(
    configured: Configured, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What started this process stands for torchrun's agent."""
    config = configured(run__name="restarts", optim__epochs=1)
    for name, value in (("RUN_ID", "none"), ("MAX_RESTARTS", "3"), ("RESTART_COUNT", "0")):
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    trained(config, world)
    with pytest.raises(InputError, match="already holds a run at step 5"):  # a second command, first attempt
        trained(config, world)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert trained(config, world).start == 5
    assert "alasca: restart 2 of this job: on from the newest checkpoint\n" in capsys.readouterr().err
    # Where it began from a checkpoint, a restart takes what was saved since, also where that one is pruned by now.
    outside = shutil.copytree(config.folder / "checkpoints/step-000000005", config.folder.parent / "outside")
    two = configured(run__name="restarts", run__resume=str(outside), optim__epochs=1)
    assert Restarts(two, world, Launcher()).resume() == str(outside)  # nothing was
    shutil.copytree(outside, config.folder / "checkpoints/step-000000006")
    assert Restarts(two, world, Launcher()).resume() == "auto"
    shutil.rmtree(outside)
    assert Restarts(two, world, Launcher()).resume() == "auto"
    shutil.rmtree(config.folder / "checkpoints/step-000000006")
    job = config.folder / "job.json"
    for text in ('{"agents": ["elsewhere:1:2.00"]}', "{", "[]"):
        job.write_text(text)
        with pytest.raises(InputError, match="already holds a run at step 5"):
            trained(config, world)
    job.unlink()
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    trained(configured(run__name="restarts", optim__epochs=1, run__resume="auto"), world)
    assert not job.exists()


def test_the_command_that_goes_on() -> None:
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    words = [sys.executable, torchrun, "--nproc-per-node", "2", "launch/train.py", "a b.toml", "--resume", "none"]
    assert resuming([*words, "--optim.lr", "1"]) == [*words[1:-2], "--optim.lr", "1", "--resume", "auto"]
    words = ["python", "launch/train.py", "c.toml"]
    for limit in (["--run.max_steps", "10"], ["--run.max-steps=10"]):
        assert resuming([*words, *limit]) == [*words, *limit, "--resume", "auto"]
        assert resuming([*words, *limit], beyond=50) == [*words, "--resume", "auto"]  # or it stopped where it is
    assert resuming(words, beyond=50) == [*words, "--run.max_steps", "50", "--resume", "auto"]  # it is in the file
    assert resuming([*words, "--run.resume=x"]) == [*words, "--resume", "auto"]
