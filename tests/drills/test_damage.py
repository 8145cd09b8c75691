"""The drill that damages a checkpoint, on small ones; and that it notices a damage which is not noticed."""

import shutil
from pathlib import Path

import pytest
import torch

from drills.damage import every_damage
from pipeline.train import checkpoint, packed
from pipeline.train.dist import World
from pipeline.train.writer import Writer

FILES = ["index.json", "model.safetensors", "rank-00000.safetensors"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints of one process."""
    world = World(0, 1, 0, torch.device("cpu"))
    writer = Writer(tmp_path, world, "attempt", 20.0, lambda _: None, lambda *_: None)
    for step in (4, 8):
        weights = {"weight": torch.arange(6.0) + step}
        files = {FILES[1]: (weights, None), FILES[2]: packed.flatten({"alasca": {"rows": torch.ones(3, 2) * step}})}
        writer.begin(step, files, lambda: None, (0, 3), {"classes": ["a", "b"]})
        writer.wait()
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_whatever_is_damaged_is_named_and_passed_over(folder: Path, name: str) -> None:
    assert [path.name for path in checkpoint.complete(folder)] == ["step-000000004", "step-000000008"]
    assert sorted(file.name for file in (folder / "step-000000008").iterdir()) == FILES
    problems, looks = every_damage(folder, name)
    assert problems == []
    assert looks > 40
    assert checkpoint.newest(folder) == folder / "step-000000008"


def test_the_drill_fails_where_a_damage_goes_unseen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "is_sealed", lambda _: True)
    problems, _ = every_damage(folder, "index.json")
    assert any("flipped: chosen is" in problem and "step-000000008" in problem for problem in problems)


def test_the_drill_fails_where_all_is_lost(folder: Path) -> None:
    """Without an undamaged one before it there is nothing to go on from."""
    shutil.copy(folder / "step-000000008/index.json", folder / "step-000000004")
    problems, looks = every_damage(folder, "model.safetensors")
    assert len(problems) == looks and "every checkpoint in" in problems[0]
