"""`bench step` trains as the run would, and leaves nothing behind. Speed itself is never asserted."""

import math
from pathlib import Path

import pytest

from pipeline.bench import step
from pipeline.cli import main
from pipeline.train import dist
from pipeline.train.dist import World
from shards.manifest import Manifest


@pytest.fixture
def recipe(photos: Manifest, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of 2 epochs of 5 steps; the process group is that of all tests."""
    monkeypatch.setattr(dist, "start", lambda timeout: world)
    monkeypatch.setattr(dist, "stop", lambda: None)
    file = tmp_path / "tiny.toml"
    file.write_text(
        f'run = {{ dir = "{tmp_path / "runs"}" }}\n'
        f'data = {{ train = "{photos.root}", lanes = 4, micro_batch = 6, crop = 16, workers = 0 }}\n'
        'model = { name = "resnet20" }\noptim = { epochs = 2 }\n'
        '[eval.test]\ndata = "/not/looked/at"\n'
    )
    return file


def test_waiting_and_computing_make_up_the_step(recipe: Path) -> None:
    from pipeline import configfile

    found = step.measure(configfile.load(recipe), steps=2, repeats=3)
    assert (found.images_per_step, found.world, found.device) == (24, 1, "cpu")
    for values in (found.images_per_s, found.seconds, found.data_wait, found.compute):
        assert len(values) == 3
        assert all(math.isfinite(value) and value > 0 for value in values)
    for seconds, wait, compute, rate in zip(
        found.seconds, found.data_wait, found.compute, found.images_per_s, strict=True
    ):
        assert wait + compute == pytest.approx(seconds)
        assert rate == pytest.approx(24 / seconds)
    assert found.memory_gb > 0
    assert [path.name for path in recipe.parent.iterdir()] == ["tiny.toml"]


def test_the_command_takes_keys_of_the_recipe(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "--steps", "1", "--repeats", "1", str(recipe), "--data.lanes", "2"]) == 0
    out = capsys.readouterr().out
    assert "12 images a step, 1 process on cpu" in out
    assert "data wait" in out and "compute" in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--steps", "9", "{recipe}"], "2 + 5 x 9 steps are more than the 10 of the run"),
        (["{recipe}", "--optim.lrr", "1"], "unknown key 'optim.lrr'"),
        (["/nowhere.toml"], "cannot read the configuration /nowhere.toml"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], line: str, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", *(word.format(recipe=recipe) for word in words)]) == 2
    errors = capsys.readouterr().err
    assert line in errors and errors.count("\n") == 1


def test_help_after_the_configuration_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "x.toml", "--help"]) == 0
    assert "examples:" in capsys.readouterr().out
