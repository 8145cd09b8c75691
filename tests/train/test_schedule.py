"""Learning rates at their borders, against numbers worked out by hand."""

import math

import pytest

from pipeline.config import Optim
from pipeline.train.schedule import Schedule


def test_warmup_is_linear_and_meets_the_schedule() -> None:
    schedule = Schedule(Optim(epochs=10, lr=0.8, warmup_epochs=0.5, schedule="constant"), steps_per_epoch=8)
    assert [schedule.lr(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert schedule.total_steps == 80
    assert schedule.lr(79) == 0.8


def test_cosine_starts_at_lr_and_falls_towards_zero() -> None:
    schedule = Schedule(Optim(epochs=10, lr=0.4), steps_per_epoch=10)
    assert schedule.lr(0) == 0.4
    assert schedule.lr(50) == pytest.approx(0.2)
    assert schedule.lr(25) == pytest.approx(0.2 + 0.2 * math.sqrt(0.5))
    assert schedule.lr(99) == pytest.approx(0.4 * math.sin(math.pi / 200) ** 2)


def test_cosine_after_warmup_spans_what_is_left() -> None:
    schedule = Schedule(Optim(epochs=5, lr=1.0, warmup_epochs=1), steps_per_epoch=4)
    assert [schedule.lr(step) for step in (0, 3, 4, 12)] == pytest.approx([0.25, 1.0, 1.0, 0.5])


def test_multistep_drops_at_each_milestone() -> None:
    optim = Optim(epochs=10, lr=1.0, schedule="multistep", milestones=(5, 7.5))
    schedule = Schedule(optim, steps_per_epoch=4)
    assert [schedule.lr(step) for step in (0, 19, 20, 29, 30, 39)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
