"""Views: shapes, randomness that depends on nothing but its key, agreement with torchvision."""

import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop, v2

from pipeline.data.augment import eval_view, sample_rng, train_view


def picture(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("augment", ["resized_crop", "pad_crop", "none"])
@pytest.mark.parametrize("shape", [(40, 30), (16, 16), (8, 8), (100, 1), (1, 100), (3, 500)])
def test_views_are_square_whatever_comes_in(augment: str, shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 7, dtype=np.uint8)
    for sample in range(20):
        view = train_view(image, 16, augment, True, sample_rng(0, 0, sample))
        assert view.shape == (16, 16, 3)
        assert view.dtype == np.uint8
        assert view.flags["C_CONTIGUOUS"]
    assert (eval_view(image, 16, augment) == 7).all()


def test_a_very_long_image_costs_no_more_than_its_centre() -> None:
    tracemalloc.start()
    image = np.full((16, 30_000, 3), 9, dtype=np.uint8)
    image[:, 15_000:] = 200
    view = eval_view(image, 224, "resized_crop")
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()
    assert view[:, :100].max() == 9
    assert view[:, 124:].min() == 200
    tall = eval_view(np.ascontiguousarray(image.transpose(1, 0, 2)), 224, "none")
    assert (tall[:100].max(), tall[124:].min()) == (9, 200)


def test_randomness_is_a_function_of_seed_epoch_id_and_view() -> None:
    image = picture(64, 64)

    def view(*key: int) -> bytes:
        return train_view(image, 24, "resized_crop", True, sample_rng(*key)).tobytes()

    assert view(1, 2, 3, 0) == view(1, 2, 3, 0)
    others = {view(1, 2, 3, 0), view(9, 2, 3, 0), view(1, 9, 3, 0), view(1, 2, 9, 0), view(1, 2, 3, 1)}
    assert len(others) == 5


def test_flip_mirrors_half_of_the_views() -> None:
    image = picture(16, 16)
    views = [train_view(image, 16, "none", True, sample_rng(0, 0, sample)) for sample in range(400)]
    flipped = [not (view == image).all() for view in views]
    assert all((view == image[:, ::-1]).all() for view, is_flipped in zip(views, flipped, strict=True) if is_flipped)
    assert 150 < sum(flipped) < 250
    assert (train_view(image, 16, "none", False, sample_rng(0, 0, 1)) == image).all()


def test_pad_crop_moves_the_image_by_up_to_an_eighth() -> None:
    image = np.full((32, 32, 3), 255, dtype=np.uint8)
    tops = set()
    for sample in range(300):
        view = train_view(image, 32, "pad_crop", False, sample_rng(0, 0, sample))[..., 0]
        black = (view.max(axis=1) == 0).sum()
        assert black <= 4
        tops.add((int(black), bool(view[0].max() == 0)))
    assert len(tops) == 9  # 1 to 4 rows of black above, or below, or none


def test_random_boxes_are_spread_like_torchvisions() -> None:
    """Mean and deviation of the boxes' area and aspect, over the same image."""
    height, width = 90, 160
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[..., 0] = np.arange(width)
    image[..., 1] = np.arange(height)[:, None]
    ours = []
    for sample in range(3000):
        # Read the box back from the ends of the two gradients.
        view = train_view(image, 64, "resized_crop", False, sample_rng(0, 0, sample)).astype(float)
        w = (view[0, -1, 0] - view[0, 0, 0]) * 64 / 63
        h = (view[-1, 0, 1] - view[0, 0, 1]) * 64 / 63
        ours.append((w * h / (height * width), np.log(w / h)))
    torch.manual_seed(0)
    theirs = []
    for _ in range(3000):
        _, _, h, w = RandomResizedCrop.get_params(torch.zeros(3, height, width), [0.08, 1.0], [3 / 4, 4 / 3])
        theirs.append((h * w / (height * width), np.log(w / h)))
    for moment in (np.mean, np.std):
        assert moment(ours, axis=0) == pytest.approx(moment(theirs, axis=0), abs=0.03)


def test_eval_view_is_close_to_torchvisions_resize_and_centre_crop() -> None:
    image = picture(375, 500)
    theirs = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224)])(Image.fromarray(image))
    difference = abs(eval_view(image, 224, "resized_crop").astype(int) - np.asarray(theirs).astype(int))
    assert difference.mean() < 2
