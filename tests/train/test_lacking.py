"""The checkpoint that an attempt starts at: its evaluation may have been cut off, and it may lie outside the run."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import in_evaluation, trained

from pipeline.config import Config
from pipeline.record.metrics import timeless
from pipeline.record.track import read_metrics
from pipeline.train.checkpoint import read_index
from pipeline.train.dist import World
from pipeline.train.inputs import Inputs
from pipeline.train.loop import Training
from shards.manifest import Manifest

Configured = Callable[..., Config]
FIRST, SECOND = 2, 4 + 3  # batches of evaluation: in the first set, which has four, and in the second


def disturbed(config: Config, world: World, batch: int, act: Callable[[], object]) -> None:
    """Run with something happening before the forward of an evaluation batch."""
    training = Training(config, Inputs.open(config, 1), world)
    in_evaluation(training, batch, act)
    try:
        training.run()
    finally:
        training.close()


def stop() -> None:
    signal.raise_signal(signal.SIGTERM)


def die() -> None:
    raise KeyboardInterrupt


def selected(config: Config, step: int) -> float | None:
    found: float | None = read_index(config.folder / f"checkpoints/step-{step:09d}")["selected"]
    return found


def records(config: Config) -> list[dict[str, Any]]:
    return [timeless(r) for r in read_metrics(config.folder)]


@pytest.fixture
def chosen(configured: Configured, photos: Manifest, clean_photos: Manifest) -> Configured:
    """Ten steps, evaluated on two sets after the fifth and the last; the first set chooses."""
    sets = {"eval__test": {"data": str(clean_photos.root)}, "eval__val": {"data": str(photos.root)}}

    def make(**changes: Any) -> Config:
        return configured(checkpoint__keep=9, eval__select_by="test", track__every=1, **sets, **changes)

    return make


def test_two_stops_in_one_evaluation_keep_the_figure_that_chooses(chosen: Configured, world: World) -> None:
    disturbed(chosen(), world, FIRST, stop)
    assert selected(chosen(), 5) is None
    disturbed(chosen(run__resume="auto"), world, SECOND, stop)
    (accuracy,) = (r["main/top1"] for r in records(chosen()) if r["kind"] == "eval")
    assert selected(chosen(), 5) == accuracy
    assert json.loads((chosen().folder / "stopped").read_text())["step"] == 5


@pytest.mark.parametrize("batch", [FIRST, SECOND])
def test_a_kill_in_the_evaluation_that_a_stop_had_cut_off_loses_nothing(
    chosen: Configured, world: World, batch: int
) -> None:
    straight = chosen(run__name="straight")
    trained(straight, world)
    disturbed(chosen(), world, FIRST, stop)
    with pytest.raises(KeyboardInterrupt):
        disturbed(chosen(run__resume="auto"), world, batch, die)
    assert selected(chosen(), 5) is None
    assert [r["set"] for r in records(chosen()) if r["kind"] == "eval"] == ["test"] * (batch == SECOND)
    trained(chosen(run__resume="auto"), world)
    assert records(chosen()) == records(straight)
    assert [selected(chosen(), step) for step in (5, 10)] == [selected(straight, step) for step in (5, 10)]
    assert selected(straight, 5) is not None


@pytest.mark.parametrize("batch", [1, FIRST, SECOND, 4 + 10])
def test_a_kill_in_an_evaluation_costs_what_came_after_the_last_checkpoint(
    chosen: Configured, world: World, batch: int
) -> None:
    changes = {"checkpoint__every_steps": 3, "optim__ema": 0.8}
    straight = trained(chosen(run__name="straight", **changes), world)
    with pytest.raises(KeyboardInterrupt):
        disturbed(chosen(**changes), world, batch, die)
    again = trained(chosen(run__resume="auto", data__workers=2, **changes), world)
    assert again.start == 3
    assert records(again.config) == records(straight.config)
    for file in ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "rank-00000.safetensors"):
        ours, theirs = (run.config.folder / "checkpoints/step-000000010" / file for run in (again, straight))
        assert ours.read_bytes() == theirs.read_bytes(), file


def test_a_run_that_goes_on_from_elsewhere_has_that_checkpoint_first(
    configured: Configured, world: World, tmp_path: Path
) -> None:
    straight = trained(configured(run__name="straight"), world)
    elsewhere = shutil.copytree(straight.config.folder / "checkpoints/step-000000005", tmp_path / "elsewhere")
    config = configured(run__name="moved", run__resume=str(elsewhere), eval__every=2)
    training = Training(config, Inputs.open(config, 1), world)
    train = training.engine.train
    training.engine.train = lambda: (train(), stop())[0]  # type: ignore[method-assign, func-returns-value]
    training.run()
    training.close()
    assert json.loads((config.folder / "stopped").read_text())["step"] == 5
    shutil.rmtree(elsewhere)
    moved = trained(configured(run__name="moved", run__resume="auto", eval__every=2), world)
    assert moved.start == 5
    for file in ("model.safetensors", "optimizer.safetensors", "rank-00000.safetensors"):
        ours, theirs = (run.config.folder / "checkpoints/step-000000010" / file for run in (moved, straight))
        assert ours.read_bytes() == theirs.read_bytes(), file
