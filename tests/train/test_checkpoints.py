"""Saving beside training, choosing, keeping; through whole runs in this process."""

import itertools
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import trained

from pipeline.config import Config
from pipeline.record.metrics import timeless
from pipeline.record.track import read_metrics
from pipeline.train import checkpoints as module
from pipeline.train import packed
from pipeline.train.checkpoint import read_index
from pipeline.train.checkpoints import Checkpoints
from pipeline.train.dist import World
from pipeline.train.index import sealed
from pipeline.train.inputs import Inputs
from pipeline.train.loop import Training
from pipeline.train.saves import Saves
from shards.errors import InputError

Configured = Callable[..., Config]


def names(training: Training) -> list[str]:
    return [path.name.removeprefix("step-0000000") for path in training.checkpoints.paths()]


def test_training_goes_on_while_a_checkpoint_is_written(
    configured: Configured, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first save is held back until two more steps are done: it holds the weights of its own step."""
    go_on, write = threading.Event(), packed.write

    def held(path: Path, *content: object, **options: object) -> object:
        assert go_on.wait(60)
        return write(path, *content, **options)

    config = configured(run__name="beside", checkpoint__every_steps=5, run__max_steps=8)
    training = Training(config, Inputs.open(config, 1), world)
    monkeypatch.setattr(packed, "write", held)
    progress = training.tracker.progress

    def looked_at(done: int) -> None:
        progress(done)
        if done == 7:
            assert names(training) == []
            go_on.set()

    monkeypatch.setattr(training.tracker, "progress", looked_at)
    training.run()
    training.close()
    assert names(training) == ["05", "08"]
    straight = trained(configured(run__name="straight", run__max_steps=5), world)
    saved, expected = (run.config.folder / "checkpoints/step-000000005" for run in (training, straight))
    for file in ("model.safetensors", "optimizer.safetensors", "rank-00000.safetensors"):
        assert (saved / file).read_bytes() == (expected / file).read_bytes()


def test_the_best_checkpoint_stays_beside_the_newest(configured: Configured, world: World) -> None:
    config = configured(optim__epochs=6, checkpoint__keep=1, eval__select_by="test")
    training = trained(config, world)
    figures = {r["step"]: r["main/top1"] for r in read_metrics(config.folder) if r["kind"] == "eval"}
    best = max(figures, key=lambda step: (figures[step], step == max(figures), -step))
    first_best = min(step for step in figures if figures[step] == max(figures.values()))
    assert names(training) in ([f"{first_best:02d}", "30"], [f"{best:02d}"], ["30"])
    assert f"{first_best:02d}" in names(training)
    assert read_index(training.checkpoints.paths()[0])["selected"] == max(figures.values())
    with pytest.raises(InputError, match=r"eval.select_by = 'vall' names none of \[eval.NAME\]"):
        configured(eval__select_by="vall")


def test_a_full_disk_at_a_save_ends_no_run_and_is_told(
    configured: Configured, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = packed.write

    def full(path: Path, *content: object, **options: object) -> object:
        if "step-000000010" in str(path):
            raise OSError(28, "No space left on device")
        return write(path, *content, **options)

    monkeypatch.setattr(packed, "write", full)
    training = trained(configured(optim__epochs=3), world)
    assert names(training) == ["05", "15"]
    assert training.checkpoints.failures == ["the checkpoint of step 10 could not be written (No space left on device)"]
    assert "training goes on; the last good one is step-000000005" in capsys.readouterr().err
    assert (training.config.folder / "summary.json").exists()


def test_a_log_on_the_disk_that_is_full_ends_no_run(
    configured: Configured, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where Slurm's log lies beside the run: what is to be warned of cannot even be said."""

    def full(*_: object, **__: object) -> object:
        raise OSError(28, "No space left on device")

    config = configured()
    training = Training(config, Inputs.open(config, 1), world)
    pwrite, calls = os.pwrite, itertools.count()
    with monkeypatch.context() as patched:
        patched.setattr(packed, "write", full)
        patched.setattr(os, "pwrite", lambda *words: full() if next(calls) < 3 else pwrite(*words))
        log = open("/dev/full", "w", buffering=1)  # noqa: SIM115 - closing it would raise
        patched.setattr(sys, "stderr", log)
        training.run()
    training.close()
    with pytest.raises(OSError, match="No space"):
        log.close()
    assert len(training.unsaved) == 2
    assert [r["step"] for r in read_metrics(config.folder) if r["kind"] == "train"] == [2, 4, 5, 6, 8, 10]
    assert (config.folder / "summary.json").exists()


def test_ranks_that_see_another_folder_are_named(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS_TO_SEE", 0.2)
    monkeypatch.setattr(Path, "touch", lambda self: None)  # what rank 0 writes does not arrive
    monkeypatch.setattr(module.socket, "gethostname", lambda: "node-b")
    with pytest.raises(InputError, match=rf"run.dir: node-b cannot see {tmp_path}/run/c, where rank 0 writes"):
        Checkpoints(tmp_path / "run/c", world, keep=1).meet()


def test_what_an_attempt_left_is_swept(configured: Configured, world: World) -> None:
    training = trained(configured(optim__epochs=1), world)
    folder = training.config.folder / "checkpoints"
    (folder / ".step-000000003.abc.tmp").mkdir()
    (folder / ".step-000000003.abc.tmp/model.safetensors").write_bytes(b"half")
    (folder / ".attempt-0123456789ab").touch()
    trained(configured(optim__epochs=1, run__resume="auto"), world)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000000005"]


def test_a_run_of_two_ranks_goes_on_in_one(configured: Configured, world: World, tmp_path: Path) -> None:
    """Its checkpoint is cut in two as two ranks write it; the run in one process ends bit for bit the same."""
    straight = trained(configured(run__name="straight", optim__ema=0.9), world)
    folder = tmp_path / "runs/moved"
    shutil.copytree(straight.config.folder, folder)
    shutil.rmtree(folder / "checkpoints/step-000000010")
    path = folder / "checkpoints/step-000000005"
    whole = packed.read(path / "rank-00000.safetensors", copy=True)["alasca"]
    (path / "rank-00000.safetensors").unlink()
    index, homes = read_index(path), [straight.plan.home(rank, 2) for rank in range(2)]
    for rank, (start, stop) in enumerate(homes):
        name = f"rank-{rank:05d}.safetensors"
        state = {"alasca": {"start": start, "stop": stop, "rows": whole["rows"][start:stop].clone()}}
        index["files"][name] = packed.write(path / name, *packed.flatten(state))
    (path / "index.json").write_text(sealed(index | {"homes": homes, "world": 2}))
    moved = trained(configured(run__name="moved", run__resume="auto", optim__ema=0.9), world)
    assert moved.start == 5
    assert torch.equal(straight.objective.banks["alasca"].rows, moved.objective.banks["alasca"].rows)
    records = [[timeless(r) for r in read_metrics(run.config.folder)] for run in (straight, moved)]
    assert records[0] == records[1]
    for file in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        saved = [(run.config.folder / "checkpoints/step-000000010" / file).read_bytes() for run in (straight, moved)]
        assert saved[0] == saved[1], file


@pytest.mark.parametrize(
    ("minutes", "every", "expected"),
    [
        (2.0, 0, ["04", "05", "09", "10"]),  # a minute a step: asked for in the third, saved with the next
        (4.0, 0, ["05", "10"]),  # asked for in the fifth, whose own save at the end of the epoch is the answer
        (1.0, 0, ["03", "05", "08", "10"]),
        (2.0, 3, ["03", "06", "09", "10"]),
        (9.5, 4, ["04", "08", "10"]),
    ],
)
def test_minutes_count_from_the_last_save_whatever_asked_for_it(
    configured: Configured, world: World, minutes: float, every: int, expected: list[str]
) -> None:
    config = configured(checkpoint__every_minutes=minutes, checkpoint__every_steps=every, checkpoint__keep=9)
    training = Training(config, Inputs.open(config, 1), world)
    seconds = [0.0]
    training.saves = Saves(
        config, training.checkpoints, training.plan, training.identity, True, 10, None, clock=lambda: seconds[0]
    )
    progress = training.tracker.progress

    def passes(done: int) -> None:
        progress(done)
        seconds[0] += 60

    training.tracker.progress = passes  # type: ignore[method-assign]
    training.run()
    training.close()
    assert names(training) == expected
