"""Views: shapes, randomness that depends on nothing but its key, agreement with torchvision."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import RandomResizedCrop, v2

from pipeline.data.augment import _random_box, eval_view, sample_rng, train_view


def picture(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def photograph(height: int, width: int) -> np.ndarray:
    """Smooth colours with fine texture, which a filter without antialiasing turns into stripes."""
    y, x = np.mgrid[0:height, 0:width]
    stripes = 30 * np.sin(x * 2.1 + y * 0.3) + 30 * np.sin(y * 2.6)
    grain = np.random.default_rng(1).normal(0, 8, (height, width))
    return (picture(height, width) * 0.6 + (stripes + grain)[..., None] + 40).clip(0, 255).astype(np.uint8)


def assert_like(view: np.ndarray, theirs: Any) -> None:
    """To one level of 255 on average and two at the 95th percentile; and no pixel is anywhere else."""
    difference = abs(view.astype(int) - np.asarray(theirs).astype(int))
    assert difference.mean() <= 1
    assert np.percentile(difference, 95) <= 2
    assert difference.max() <= 8


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


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation within gives back."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.bytes = max(self.bytes, made.nbytes)
        return made


def test_a_very_long_image_costs_no_more_than_its_centre() -> None:
    image = np.full((16, 30_000, 3), 9, dtype=np.uint8)
    image[:, 15_000:] = 200
    tracemalloc.start()
    with Largest() as largest:
        view = eval_view(image, 224, "resized_crop")
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()
    assert 224 * 224 * 3 < largest.bytes < 30e6
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


@pytest.mark.parametrize(
    ("shape", "crop"),
    [((375, 500), 224), ((533, 400), 224), ((1500, 2000), 224), ((500, 500), 32), ((90, 60), 224), ((300, 180), 160)],
    ids=["photo", "tall", "large", "to an icon", "growing", "both ways"],
)
def test_views_are_what_torchvision_makes_of_the_same_box(shape: tuple[int, int], crop: int) -> None:
    """Its antialiased result, which Pillow computes: another implementation than ours."""
    image = photograph(*shape)
    for sample in range(12):
        box = _random_box(*shape, sample_rng(0, 0, sample))
        theirs = v2.functional.resized_crop(Image.fromarray(image), *box, [crop, crop], antialias=True)
        assert_like(train_view(image, crop, "resized_crop", False, sample_rng(0, 0, sample)), theirs)


@pytest.mark.parametrize("shape", [(375, 500), (1500, 1100), (80, 60)])
def test_eval_view_is_torchvisions_resize_and_centre_crop(shape: tuple[int, int]) -> None:
    image = photograph(*shape)
    # Both sides are given: torchvision would cut off the fraction of the long one, we round it.
    sides = [round(256 * side / min(shape)) for side in shape]
    top, left = ((side - 224) // 2 for side in sides)
    theirs = v2.functional.resize(Image.fromarray(image), sides, antialias=True)
    assert_like(eval_view(image, 224, "resized_crop"), theirs.crop((left, top, left + 224, top + 224)))


def test_a_filter_without_antialiasing_would_be_seen() -> None:
    """The two tests above can fail: on these images such a filter is far outside their bounds."""
    image = photograph(900, 700)
    theirs = v2.functional.resize(Image.fromarray(image), [224, 224], antialias=True)
    careless = v2.functional.resize(torch.from_numpy(image).permute(2, 0, 1), [224, 224], antialias=False)
    with pytest.raises(AssertionError):
        assert_like(careless.permute(1, 2, 0).numpy(), theirs)


def test_random_numbers_are_those_of_a_spawned_seed() -> None:
    """However they are made: another stream would change every run in progress."""
    for key in ((0, 0, 0, 0), (2**32 - 1, 119, 14_000_000, 1)):
        seed, *rest = key
        spawned = np.random.SeedSequence(seed, spawn_key=(1, *rest))
        expected = np.random.Generator(np.random.Philox(spawned)).random(5)
        assert (sample_rng(*key).random(5) == expected).all()
