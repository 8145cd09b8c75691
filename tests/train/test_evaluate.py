"""Evaluation against counts made by hand, with a network whose answers are known."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import Config
from pipeline.train.bad import BadImages
from pipeline.train.dist import World
from pipeline.train.evaluate import Answers, evaluate
from shards.build import build
from shards.manifest import Manifest
from shards.readers import find

CLASSES = 8


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Five flat images of each of eight classes, told apart by their grey; one of them does not decode."""
    folder = tmp_path_factory.mktemp("graded")
    for label in range(CLASSES):
        (folder / "raw" / f"c{label}").mkdir(parents=True)
        for number in range(5):
            pixels = np.full((12, 12, 3), 20 * label + 4 * number, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "raw" / f"c{label}" / f"{number}.png")
    file = folder / "raw" / "c3" / "2.png"
    file.write_bytes(file.read_bytes()[:40])
    return build(find("imagefolder")(folder / "raw", None), folder / "shards", workers=1)


def answers(images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Main: image n of class c gets the true class at rank n. Last head: as far above at rank 0 as to win the mean."""
    grey = images[:, 0, 0, 0].long()
    label, number = grey // 20, grey % 20 // 4
    order = (torch.arange(CLASSES)[None] - label[:, None]) % CLASSES  # 0 for the true class
    main = -((order + number[:, None]) % CLASSES).float()
    first_head = torch.full_like(main, 7.0)
    last_head = torch.where(order == 0, torch.where(number == 4, 0.0, 100.0)[:, None], 0.0)
    return main, [first_head, last_head]


def test_top1_top5_and_averaged_are_counted_over_valid_images(
    configured: Callable[..., Config], world: World, graded: Manifest
) -> None:
    config = configured(data__crop=12, data__augment="none", data__max_bad_fraction=0.1, data__micro_batch=7)
    bad = BadImages(graded, 0.1)
    figures = evaluate(Answers(answers, graded, config, world, bad))
    (named,) = bad.agree()
    assert named["key"] == "c3/2.png"
    assert (figures["images"], figures["bad"]) == (40, 1)
    # The true class has main logit -n; above it are the n classes with -0 .. -(n - 1).
    assert figures["main/top1"] == pytest.approx(8 / 39)
    assert figures["main/top5"] == pytest.approx(39 / 39)
    # The mean with the last head puts the true class first, but for number 4.
    assert figures["averaged/top1"] == pytest.approx(31 / 39)
    logits = -np.arange(CLASSES, dtype=float)
    log_p = logits - np.log(np.exp(logits).sum())
    counts = [8, 8, 7, 8, 8]
    assert figures["loss"] == pytest.approx(-sum(c * log_p[n] for n, c in enumerate(counts)) / 39, rel=1e-5)


def test_top5_needs_five(configured: Callable[..., Config], world: World, graded: Manifest) -> None:
    def shifted(images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        main, _ = answers(images)
        return main.roll(2, dims=1), []

    config = configured(data__crop=12, data__augment="none", data__max_bad_fraction=0.1)
    figures = evaluate(Answers(shifted, graded, config, world, BadImages(graded, 0.1)))
    # Now the true class has the logit that its class - 2 had: order 6, at rank (6 + n) % 8.
    ranks = {n: (6 + n) % 8 for n in range(5)}
    counts = {0: 8, 1: 8, 2: 7, 3: 8, 4: 8}
    assert figures["main/top5"] == pytest.approx(sum(counts[n] for n in range(5) if ranks[n] < 5) / 39)
    assert figures["main/top1"] == pytest.approx(sum(counts[n] for n in range(5) if ranks[n] == 0) / 39)
    assert "averaged/top1" not in figures
