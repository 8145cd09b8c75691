"""Asked to stop, a run saves, says so, and goes on later as if nothing had been."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import runs
import torch
from runs import tiny, trained

from pipeline.config import Config
from pipeline.record.metrics import timeless
from pipeline.record.track import read_metrics
from pipeline.train.dist import World
from pipeline.train.inputs import Inputs
from pipeline.train.loop import Training
from shards.manifest import Manifest

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
    return lambda training: runs.in_evaluation(training, batch, act)


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


def test_the_seconds_of_the_last_save_are_known_to_the_next_attempt(run: Configured, straight: Training) -> None:
    index = json.loads((straight.config.folder / "checkpoints/step-000000010/index.json").read_text())
    assert 0 < index["save_seconds"] < 60
    assert straight.checkpoints.seconds is not None
