"""Runs are compared to the last bit, and what is half written is found."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from drills.record import differences, partial, steps
from pipeline.train import packed
from pipeline.train.dist import World
from pipeline.train.writer import Writer

LINES: list[dict[str, Any]] = [
    {"kind": "train", "step": 1, "loss": 2.0, "images_per_s": 3.0, "time": 5.0},
    {"kind": "eval", "step": 1, "set": "test", "loss": 1.0, "main/top1": 0.5, "time": 6.0},
]


def finished(folder: Path, mean: float = 0.0, weight: float = 1.0, lines: list[dict[str, Any]] = LINES) -> Path:
    """A run with one checkpoint, of one process."""
    world = World(0, 1, 0, torch.device("cpu"))
    writer = Writer(folder / "checkpoints", world, "attempt", 20.0, lambda _: None, lambda *_: None)
    model = {"bn.running_mean": torch.tensor([mean]), "weight": torch.tensor([weight])}
    files = {"model.safetensors": (model, None), "rank-00000.safetensors": packed.flatten({"rows": torch.ones(2)})}
    writer.begin(1, files, lambda: None, (0, 2), {})
    writer.wait()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text("{}")
    return folder


def changed(**fields: float) -> list[dict[str, Any]]:
    return [LINES[0], LINES[1] | fields]


@pytest.mark.parametrize(
    ("change", "more_saves", "found"),
    [
        ({}, False, []),
        ({"lines": changed(time=99.0)}, False, []),
        ({"lines": changed(loss=1.5)}, False, ['metrics.jsonl: step 1 eval: {"loss": [1.5, 1.0]}']),
        ({"lines": LINES[:1]}, False, ["metrics.jsonl has 1 lines, not 2"]),
        ({"mean": 1e-7}, False, ["model.safetensors: bn.running_mean differs by"]),
        ({"mean": 1e-7, "lines": changed(loss=1.000001)}, True, []),
        ({"mean": 1e-3}, True, ["model.safetensors: bn.running_mean differs by"]),
        ({"weight": 1.0000001}, True, ["model.safetensors: weight differs by"]),
    ],
)
def test_the_smallest_difference_is_named(
    tmp_path: Path, change: dict[str, Any], more_saves: bool, found: list[str]
) -> None:
    run, straight = finished(tmp_path / "run", **change), finished(tmp_path / "straight")
    ours = differences(run, straight, more_saves=more_saves)
    assert len(ours) == len(found)
    assert all(text.startswith(start) for text, start in zip(ours, found, strict=True))


def test_a_run_that_waits_to_go_on_is_not_finished(tmp_path: Path) -> None:
    run, straight = finished(tmp_path / "run"), finished(tmp_path / "straight")
    (run / "summary.json").unlink()
    (run / "stopped").touch()
    assert differences(run, straight) == ["no summary.json", "stopped was not removed"]


def test_what_is_half_written_is_found(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    assert partial(run) == []
    for name in ("checkpoints/.step-000000002.a.tmp/model.safetensors", "checkpoints/.attempt-a", ".summary.json.tmp"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).touch()
    assert sorted(partial(run)) == [
        "run/.summary.json.tmp",
        "run/checkpoints/.attempt-a",
        "run/checkpoints/.step-000000002.a.tmp",
    ]


def test_steps_of_this_attempt(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    assert (steps(run), steps(run, since=5.0)) == ([1], [])
