"""Asked to stop, a run saves, says so, and goes on later as if nothing had been."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import tiny, trained

from pipeline.config import Config
from pipeline.data.batch import Bad
from pipeline.record.metrics import timeless
from pipeline.record.track import read_metrics
from pipeline.train.bad import BadImages
from pipeline.train.dist import World
from pipeline.train.flags import Flags
from pipeline.train.inputs import Inputs
from pipeline.train.launcher import Launcher, resuming
from pipeline.train.loop import Training
from pipeline.train.restarts import Restarts
from pipeline.train.stop import Stop
from shards.errors import InputError
from shards.manifest import Manifest

ROOT = Path(__file__).parents[2]

Configured = Callable[..., Config]
Hook = Callable[[Training], None]


@pytest.fixture(scope="module")
def run(photos: Manifest, clean_photos: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Configured:
    """Ten steps, each recorded, evaluated on two sets after the fifth and the last."""

    def make(name: str, **changes: Any) -> Config:
        sets = {"test": {"data": str(clean_photos.root)}, "val": {"data": str(photos.root)}}
        settings = {"run__name": name, "track__every": 1, "track__norms": 3, "eval__test": sets["test"]}
        return tiny(photos, clean_photos, folder, **settings | {"eval__val": sets["val"]} | changes)

    folder = tmp_path_factory.mktemp("stopping")
    return make


@pytest.fixture(scope="module")
def straight(run: Configured, world: World) -> Training:
    return trained(run("straight"), world)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Whatever happens, a run leaves the process as it found it."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before, threads = [signal.getsignal(number) for number in numbers], {t.name for t in threading.enumerate()}
    yield
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert "stop" not in {t.name for t in threading.enumerate()} - threads


def disturbed(config: Config, world: World, hook: Hook) -> dict[str, Any]:
    """Run with something happening to it; what it left in `stopped`."""
    training = Training(config, Inputs.open(config, 1), world)
    hook(training)
    try:
        training.run()
    finally:
        training.close()
    found: dict[str, Any] = json.loads((config.folder / "stopped").read_text())
    assert not (config.folder / "summary.json").exists()
    return found


def after_step(number: int, act: Callable[[], object]) -> Hook:
    def hook(training: Training) -> None:
        step, done = training.engine.step, 0

        def stepping(lr: float) -> torch.Tensor:
            nonlocal done
            flags = step(lr)
            done += 1
            if done == number:
                act()
            return flags

        training.engine.step = stepping  # type: ignore[method-assign]

    return hook


def in_evaluation(batch: int, act: Callable[[], object]) -> Hook:
    """Before the forward of some evaluation batch, counted over all sets and evaluations."""

    def hook(training: Training) -> None:
        forward, seen = training.engine.forward, 0

        def answering(images: torch.Tensor) -> Any:
            nonlocal seen
            seen += not training.engine.module.training
            if seen == batch and not training.engine.module.training:
                act()
            return forward(images)

        training.engine.forward = answering  # type: ignore[method-assign]

    return hook


def asked(number: int) -> Callable[[], None]:
    return lambda: signal.raise_signal(number)


def goes_on_as_straight(config: Config, world: World, straight: Training) -> None:
    resumed = trained(config.model_copy(update={"run": config.run.model_copy(update={"resume": "auto"})}), world)
    assert not (config.folder / "stopped").exists()
    assert (config.folder / "summary.json").exists()
    pairs = [(a.engine.module.state_dict(), a.engine.optimizer.state_dict()["state"]) for a in (straight, resumed)]
    (weights, momenta), (weights_again, momenta_again) = pairs
    assert all(torch.equal(tensor, weights_again[name]) for name, tensor in weights.items())
    for index, state in momenta.items():
        assert torch.equal(state["momentum_buffer"], momenta_again[index]["momentum_buffer"])
    assert torch.equal(straight.objective.banks["alasca"].rows, resumed.objective.banks["alasca"].rows)
    records = [[timeless(r) for r in read_metrics(t.config.folder)] for t in (straight, resumed)]
    assert records[0] == records[1]


@pytest.mark.parametrize(("name", "workers"), [("SIGTERM", 2), ("SIGUSR1", 0), ("SIGINT", 0)])
def test_a_signal_is_obeyed_after_the_next_step(
    run: Configured, world: World, straight: Training, name: str, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    config = run(name, data__workers=workers)
    found = disturbed(config, world, after_step(3, asked(getattr(signal, name))))
    assert found == {"step": 4, "reason": name, "time": found["time"]}
    assert f"{name}: stopped at step 4 of 10 ({name}); to go on:" in capfd.readouterr().err
    goes_on_as_straight(config, world, straight)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_is_cut_off_and_made_up_for(
    run: Configured, world: World, straight: Training, workers: int
) -> None:
    """In the second set: the first one has its record already."""
    config = run(f"evaluating-{workers}", data__workers=workers)
    found = disturbed(config, world, in_evaluation(4 + 3, asked(signal.SIGTERM)))
    assert (found["step"], found["reason"]) == (5, "SIGTERM")
    assert [r["set"] for r in read_metrics(config.folder) if r["kind"] == "eval"] == ["test"]
    # Cut off once more, before any step.
    again = config.model_copy(update={"run": config.run.model_copy(update={"resume": "auto"})})
    assert disturbed(again, world, in_evaluation(2, asked(signal.SIGTERM)))["step"] == 5
    goes_on_as_straight(config, world, straight)


def test_nobody_has_to_listen(
    run: Configured, world: World, straight: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends the `tee` behind a pipe before the run has saved."""
    config = run("unheard")
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", buffering=1, closefd=False) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        found = disturbed(config, world, after_step(3, lambda: (os.close(reading), signal.raise_signal(signal.SIGINT))))
        monkeypatch.undo()
        with contextlib.suppress(BrokenPipeError):
            stream.close()
    os.close(writing)
    assert found["step"] == 4
    goes_on_as_straight(config, world, straight)


def test_the_last_evaluation_is_made_up_for(run: Configured, world: World, straight: Training) -> None:
    config = run("at-the-end")
    assert disturbed(config, world, after_step(9, asked(signal.SIGTERM)))["step"] == 10
    assert [r["step"] for r in read_metrics(config.folder) if r["kind"] == "eval"] == [5, 5]
    goes_on_as_straight(config, world, straight)


def test_a_signal_while_saving_waits(run: Configured, world: World, straight: Training) -> None:
    def hook(training: Training) -> None:
        save = training.checkpoints.save

        def saving(step: int, **state: Any) -> None:
            signal.raise_signal(signal.SIGTERM)
            save(step, **state)

        training.checkpoints.save = saving  # type: ignore[method-assign]

    config = run("saving")
    assert disturbed(config, world, hook)["step"] == 7  # posted after the sixth
    goes_on_as_straight(config, world, straight)


def test_a_signal_at_the_very_end_changes_nothing(run: Configured, world: World) -> None:
    config = run("ending", optim__epochs=1)
    training = Training(config, Inputs.open(config, 1), world)
    in_evaluation(14, asked(signal.SIGTERM))(training)  # the last batch
    training.run()
    assert (config.folder / "summary.json").exists()
    assert not (config.folder / "stopped").exists()


def test_before_the_first_step_there_is_nothing_to_save(run: Configured, world: World, straight: Training) -> None:
    def hook(training: Training) -> None:
        train = training.engine.train
        training.engine.train = lambda: (train(), signal.raise_signal(signal.SIGTERM))[0]  # type: ignore[method-assign]

    config = run("early")
    assert disturbed(config, world, hook)["step"] == 0
    assert not list(config.folder.glob("checkpoints/*"))
    goes_on_as_straight(config, world, straight)


def test_minutes_are_counted_from_the_start_of_the_process(run: Configured, world: World) -> None:
    import psutil

    age = time.time() - psutil.Process().create_time()
    config = run("minutes", run__max_minutes=(age + 3) / 60, optim__epochs=2000, eval__every=2000)
    found = disturbed(config, world, lambda training: None)
    assert found["reason"] == "run.max_minutes are over"
    assert 0 <= found["step"] < 10_000
    assert sorted(int(p.name[5:]) for p in config.folder.glob("checkpoints/*"))[-1:] == [found["step"]][: found["step"]]


def test_a_stop_file_is_obeyed_and_removed(run: Configured, world: World) -> None:
    config = run("file", optim__epochs=2000, eval__every=2000)
    found = disturbed(config, world, after_step(3, (config.folder / "stop").touch))
    assert found["reason"] == "a stop file"
    assert found["step"] > 3
    assert not (config.folder / "stop").exists()


def test_an_old_stop_file_is_removed_and_a_new_one_is_not(
    run: Configured, world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    config = run("old-file", optim__epochs=1)
    config.folder.mkdir()
    file = config.folder / "stop"
    file.touch()
    assert disturbed(config, world, lambda training: None)["step"] == 0  # put there since this process began
    file.touch()
    os.utime(file, (1e9, 1e9))
    trained(config, world)
    assert f"removed {file}, which is older than this attempt" in capfd.readouterr().err
    assert (config.folder / "summary.json").exists()


@pytest.mark.parametrize(("launcher", "second"), [({}, "SIGINT"), ({"TORCHELASTIC_RUN_ID": "x"}, "SIGTERM")])
def test_a_second_ctrl_c_leaves_at_once_even_where_the_process_hangs(
    tmp_path: Path, launcher: dict[str, str], second: str
) -> None:
    """In C, holding no lock of Python's, like a collective that waits for a rank that is gone.

    torchrun makes SIGTERM of a second Ctrl-C.
    """
    script = f"""
import ctypes, pathlib
from pipeline.train.launcher import Launcher
from pipeline.train.stop import Stop
with Stop(Launcher()) as stop, stop.obeyed(pathlib.Path({str(tmp_path)!r}), True, None):
    print("hangs", flush=True)
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | launcher,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "hangs\n"
        process.send_signal(signal.SIGINT)
        assert "Ctrl-C again leaves at once" in process.stderr.readline()
        assert process.poll() is None
        process.send_signal(getattr(signal, second))
        assert process.wait(20) == 130
        assert process.stderr.read() == "alasca: left at once; the newest checkpoint is what there is\n"
    finally:
        process.kill()
        process.communicate()


def test_a_slow_save_is_warned_of_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for leads in (True, False):
        with Stop(Launcher()) as stop, stop.obeyed(tmp_path, leads, None):
            for seconds in (None, 20.0, 34.4, 50.0):
                stop.mind_saving(seconds)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("alasca: a save takes 34 s, and launchers kill 30 s after SIGTERM")


def test_the_seconds_of_the_last_save_are_known_to_the_next_attempt(run: Configured, straight: Training) -> None:
    index = json.loads((straight.config.folder / "checkpoints/step-000000010/index.json").read_text())
    assert 0 < index["save_seconds"] < 60
    assert straight.checkpoints.seconds is not None


def test_flags_of_one_process(world: World) -> None:
    flags = Flags("stop", "save", world=world, timeout_s=10)
    assert flags.read() == {"stop": 0, "save": 0}
    flags.post(save=1)
    assert flags.read() == {"stop": 0, "save": 1}
    flags.post(stop=2)
    assert flags.agree(stop=1, save=3) == {"stop": 2, "save": 3}
    assert flags.read() == {"stop": 0, "save": 0}


def test_a_cut_off_evaluation_keeps_no_bad_images(world: World, photos: Manifest) -> None:
    """Else the next attempt would take them for named in the record."""
    bad = BadImages(photos, 1.0)
    bad.add([Bad(3, "torn")])
    assert bad.state_dict() == []
    bad.agree()
    bad.add([Bad(4, "torn")])
    assert bad.state_dict() == [(3, "torn")]


def test_torchruns_restart_goes_on_with_its_own_run_only(
    run: Configured, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What started this process stands for torchrun's agent."""
    config = run("restarts", optim__epochs=1)
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
    two = run("restarts", run__resume=str(outside), optim__epochs=1)
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
    trained(run("restarts", optim__epochs=1, run__resume="auto"), world)
    assert not job.exists()


def test_the_command_that_goes_on() -> None:
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    words = [sys.executable, torchrun, "--nproc-per-node", "2", "launch/train.py", "a b.toml", "--resume", "none"]
    assert resuming([*words, "--optim.lr", "1"]) == [*words[1:-2], "--optim.lr", "1", "--resume", "auto"]
    words = ["python", "launch/train.py", "c.toml"]
    assert resuming([*words, "--run.resume=x"]) == [*words, "--resume", "auto"]
