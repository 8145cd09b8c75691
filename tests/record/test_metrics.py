"""A window's figures, and that it holds nothing alive."""

import pytest
import torch

from pipeline.record.metrics import Window
from pipeline.train.dist import World


def test_means_are_over_valid_samples_and_rates_over_all(world: World) -> None:
    window = Window()
    window.add(4, {"valid": torch.tensor(3), "loss": torch.tensor(6.0), "top1": torch.tensor(2)})
    window.add(4, {"valid": torch.tensor(4), "loss": torch.tensor(8.0), "top1": torch.tensor(1)})
    window.waited(0.0)
    figures = window.close()
    assert figures["loss"] == 2.0
    assert figures["top1"] == pytest.approx(3 / 7)
    assert (figures["images"], figures["valid"]) == (8, 7)
    assert figures["images_per_s"] == pytest.approx(8 / figures["seconds"])


def test_a_window_without_a_valid_sample_divides_by_nothing(world: World) -> None:
    window = Window()
    window.add(4, {"valid": torch.tensor(0), "loss": torch.tensor(0.0)})
    assert window.close()["loss"] == 0


def test_a_window_keeps_no_graph(world: World) -> None:
    window = Window()
    weight = torch.ones(3, requires_grad=True)
    for _ in range(3):
        window.add(1, {"valid": torch.tensor(1), "loss": (weight * 2).sum()})
    assert not any(value.requires_grad for value in window._sums.values())
