"""What `bench plan` says is there, finite and of the right plan. Speed itself is never asserted."""

import math

import numpy as np
import pytest

from pipeline.bench import plan
from pipeline.bench.memory import peak
from pipeline.cli import main
from shards.errors import InputError
from shards.manifest import Manifest


def test_figures_are_of_the_ranks_share() -> None:
    found = plan.measure(plan.even_shards(1003, 10), lanes=4, micro_batch=7, world=2, repeats=3)
    assert (found.samples, found.shards) == (1003, 10)
    assert found.ids == (1003 // 28) * 7 * 2
    for values in (found.order, found.stepwise, found.first, found.later_first):
        assert len(values) == 3
        assert all(math.isfinite(value) and value > 0 for value in values)


def test_made_up_shards_are_even_and_hold_every_sample() -> None:
    sizes = plan.even_shards(1003, 10)
    assert sizes.sum() == 1003 and set(sizes.tolist()) == {100, 101}
    with pytest.raises(InputError, match="--samples 3 cannot lie in --shards 4"):
        plan.even_shards(3, 4)


def test_the_command_takes_a_dataset_or_makes_one_up(photos: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--lanes", "2", "--world", "1", "--micro-batch", "10", "--repeats", "1"]
    assert main(["bench", "plan", str(photos.root), *small]) == 0
    assert "120 samples in 5 shards, 2 lanes, rank 0 of 1: 120 ids an epoch" in capsys.readouterr().out
    assert main(["bench", "plan", "--samples", "1000", "--shards", "10", *small]) == 0
    assert "1,000 samples in 10 shards" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["/nowhere"], "/nowhere: no such folder"),
        (["--samples", "100", "--shards", "2"], "100 samples are fewer than one global batch of 256"),
        (["--world", "3"], "3 processes cannot share data.lanes = 8"),
        (["--samples", "1", "--shards", "2"], "at least one sample to each shard"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "plan", *words]) == 2
    errors = capsys.readouterr().err
    assert line in errors and errors.count("\n") == 1


def test_numbers_must_be_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--lanes", "0"], ["--repeats", "many"]):
        with pytest.raises(SystemExit) as ended:
            main(["bench", "plan", *words])
        assert ended.value.code == 2
        assert "no whole number from 1" in capsys.readouterr().err


def test_the_peak_is_what_was_held_at_once() -> None:
    held = peak(lambda: np.ones(64 * 2**20, dtype=np.uint8))
    if held is None:
        pytest.skip("this system does not tell")
    assert held < 100 * 2**20
    assert held > 30 * 2**20  # less where memory that others let go of is used again
