"""Decoded image -> a square of `crop` pixels, for training (random) and for evaluation (fixed)."""

import math
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from pipeline.data.decode import Pixels

Augment = Literal["resized_crop", "pad_crop", "none"]

_STREAM = 1  # keeps these random numbers apart from those of the plan
_AREA = (0.08, 1.0)  # Szegedy et al. 2015, and torchvision's RandomResizedCrop
_ASPECT = (3 / 4, 4 / 3)
_PAD = 1 / 8  # of the crop: 4 pixels of 32 (He et al. 2016)
_EVAL_MARGIN = 8 / 7  # 256 before a crop of 224


def sample_rng(seed: int, epoch: int, sample_id: int, view: int = 0) -> np.random.Generator:
    """Random numbers of one view of one sample in one epoch: independent of workers, ranks and order.

    They are those of `SeedSequence(seed, spawn_key=(_STREAM, epoch, sample_id, view))`, given as the array that it
    would make of them, which takes a third of the time. Each must be below 2**32.
    """
    words = np.array([seed, 0, 0, 0, _STREAM, epoch, sample_id, view], dtype=np.uint32)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


def train_view(image: Pixels, crop: int, augment: Augment, flip: bool, rng: np.random.Generator) -> Pixels:
    """One random view, uint8 [crop, crop, 3].

    `resized_crop` is torchvision's RandomResizedCrop (8 to 100 % of the area, aspect 3/4 to 4/3); `pad_crop` pads the
    fitted square with an eighth of black and crops at random (CIFAR's 4 of 32 pixels); `none` is the fitted square.
    `flip` mirrors every second view.
    """
    if augment == "resized_crop":
        top, left, height, width = _random_box(image.shape[0], image.shape[1], rng)
        view = _resize(image[top : top + height, left : left + width], crop, crop)
    else:
        view = _fit(image, crop, crop)
        if augment == "pad_crop":
            pad = round(crop * _PAD)
            padded = np.pad(view, ((pad, pad), (pad, pad), (0, 0)))
            top, left = (int(rng.random() * (2 * pad + 1)) for _ in range(2))
            view = padded[top : top + crop, left : left + crop]
    view = np.ascontiguousarray(view)
    if flip and rng.random() < 0.5:
        return cv2.flip(view, 1)  # type: ignore[return-value]  # to copy view[:, ::-1] takes numpy 40 times as long
    return view


def eval_view(image: Pixels, crop: int, augment: Augment) -> Pixels:
    """The view that evaluation sees, uint8 [crop, crop, 3]: centre crop of the scale the training views have.

    With `resized_crop` the short side becomes 8/7 of the crop first (256 for 224); otherwise it becomes the crop.
    """
    margin = _EVAL_MARGIN if augment == "resized_crop" else 1
    return np.ascontiguousarray(_fit(image, round(crop * margin), crop))


def _random_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height, width of a random part of the image."""
    for _ in range(10):
        area = height * width * (_AREA[0] + (_AREA[1] - _AREA[0]) * rng.random())
        low, high = math.log(_ASPECT[0]), math.log(_ASPECT[1])
        aspect = math.exp(low + (high - low) * rng.random())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1)), h, w
    # Very long images: the largest centred box of an allowed aspect.
    w = min(width, round(height * _ASPECT[1])) or 1
    h = min(height, round(width / _ASPECT[0])) or 1
    return (height - h) // 2, (width - w) // 2, h, w


def _fit(image: Pixels, short_side: int, crop: int) -> Pixels:
    """Resize the short side, then cut the centre."""
    image = _without_ends(image)
    height, width = image.shape[:2]
    scale = short_side / min(height, width)
    height, width = max(short_side, round(height * scale)), max(short_side, round(width * scale))
    resized = _resize(image, height, width)
    top, left = (height - crop) // 2, (width - crop) // 2
    return resized[top : top + crop, left : left + crop]


def _without_ends(image: Pixels) -> Pixels:
    """Cut the ends of a very long image, which the centre crop would drop: resized whole it could fill the memory."""
    height, width = image.shape[:2]
    limit = 4 * min(height, width)
    top, left = max(0, height - limit) // 2, max(0, width - limit) // 2
    return image[top : height - top, left : width - left]


def _resize(image: Pixels, height: int, width: int) -> Pixels:
    """Through a triangle filter that widens as it shrinks: what torchvision's `antialias=True` does, on uint8."""
    if image.shape[:2] == (height, width):
        return image
    # The batch dimension comes first, or torch does not see that [1, 3, H, W] is channels_last, for which it is quick.
    images = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    resized = F.interpolate(images, (height, width), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()
