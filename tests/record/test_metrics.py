"""A window's figures, and that it holds nothing alive."""

import math

import pytest
import torch

from pipeline.record.metrics import Window
from pipeline.train.dist import World

COUNTS, SKIPPED = torch.tensor(False), torch.tensor(True)


def test_means_are_over_valid_samples_and_rates_over_all(world: World) -> None:
    window = Window()
    window.add(4, {"valid": torch.tensor(3), "loss": torch.tensor(6.0), "top1": torch.tensor(2)})
    window.add(4, {"valid": torch.tensor(4), "loss": torch.tensor(8.0), "top1": torch.tensor(1)})
    window.settle(COUNTS)
    window.waited(0.0)
    figures = window.close()
    assert figures["loss"] == 2.0
    assert figures["top1"] == pytest.approx(3 / 7)
    assert (figures["images"], figures["valid"]) == (8, 7)
    assert figures["images_per_s"] == pytest.approx(8 / figures["seconds"])


def test_a_window_without_a_valid_sample_has_no_mean(world: World) -> None:
    window = Window()
    window.add(4, {"valid": torch.tensor(0), "loss": torch.tensor(0.0)})
    window.settle(COUNTS)
    assert math.isnan(window.close()["loss"])


def test_a_skipped_step_counts_nowhere_but_in_the_rates(world: World) -> None:
    window = Window()
    for loss, skipped in ((6.0, COUNTS), (math.nan, SKIPPED), (10.0, COUNTS), (math.inf, SKIPPED)):
        for value in (loss, 2.0):
            window.add(4, {"valid": torch.tensor(4), "loss": torch.tensor(value)})
        window.settle(skipped)
    figures = window.close()
    assert (figures["images"], figures["valid"]) == (32, 16)
    assert figures["loss"] == (6.0 + 2.0 + 10.0 + 2.0) / 16


def test_a_share_is_of_its_own_number_of_samples(world: World) -> None:
    window = Window()
    for part, whole, skipped in ((1, 4, COUNTS), (9, 9, SKIPPED), (2, 2, COUNTS)):
        for loss in (1.0, 2.0):
            sums = {"valid": torch.tensor(8), "loss": torch.tensor(8 * loss)}
            none = torch.tensor(0)
            window.add(8, sums, {"a/b": (torch.tensor(part), torch.tensor(whole)), "none": (none, none)})
        window.settle(skipped)
    figures = window.close()
    assert figures["a/b"] == (1 + 1 + 2 + 2) / (4 + 4 + 2 + 2)
    assert figures["loss"] == 1.5
    assert math.isnan(figures["none"])
    assert not any(name.endswith("of") for name in figures)


def test_a_window_keeps_no_graph(world: World) -> None:
    window = Window()
    weight = torch.ones(3, requires_grad=True)
    for _ in range(3):
        window.add(1, {"valid": torch.tensor(1), "loss": (weight * 2).sum()})
        window.settle(COUNTS)
    assert not any(value.requires_grad for value in window._sums.values())
