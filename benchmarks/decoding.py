"""Ways from a JPEG to a random crop, each in one process on one core: speed, and distance from torchvision's result."""

import io
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pipeline.bench.spread import ratios, spread, table
from pipeline.data.augment import _random_box, sample_rng, train_view
from pipeline.data.decode import decode

OURS, USERS, PIL = "ours", "torchvision v2 on PIL, ToTensor, Normalize", "PIL, resize(box=), uint8"
_MAX_PIXELS = 10**9
_normalise = v2.Compose([v2.ToTensor(), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])

Box = tuple[int, int, int, int]  # top, left, height, width


class Photo:
    """A JPEG with the box and the flip that every way applies to it."""

    def __init__(self, number: int, data: bytes, crop: int) -> None:
        self.number, self.data, self.crop = number, data, crop
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        rng = self.rng()
        self.box: Box = _random_box(height, width, rng)
        self.flipped = rng.random() < 0.5

    def rng(self) -> np.random.Generator:
        """The random numbers that ours draws again."""
        return sample_rng(0, 0, self.number)

    def opened(self) -> Image.Image:
        """Decoded by Pillow."""
        return Image.open(io.BytesIO(self.data)).convert("RGB")


def _ours(photo: Photo) -> Any:
    return train_view(decode(photo.data, _MAX_PIXELS), photo.crop, "resized_crop", True, photo.rng())


def _reference(photo: Photo) -> Image.Image:
    view = F.resized_crop(photo.opened(), *photo.box, [photo.crop, photo.crop], antialias=True)
    return F.horizontal_flip(view) if photo.flipped else view


def _users(photo: Photo) -> Any:
    return _normalise(_reference(photo))


def _torchvision_uint8(photo: Photo) -> Any:
    return np.asarray(_reference(photo))


def _resized_by_pillow(image: Image.Image, photo: Photo) -> Any:
    top, left, height, width = photo.box
    view = image.resize((photo.crop,) * 2, Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    return np.asarray(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if photo.flipped else view)


def _pil(photo: Photo) -> Any:
    return _resized_by_pillow(photo.opened(), photo)


def _simplejpeg_pil(photo: Photo) -> Any:
    return _resized_by_pillow(Image.fromarray(simplejpeg.decode_jpeg(photo.data, "RGB")), photo)


def _tensors(photo: Photo) -> Any:
    image = decode_jpeg(torch.frombuffer(bytearray(photo.data), dtype=torch.uint8), ImageReadMode.RGB)
    view = F.resized_crop(image, *photo.box, [photo.crop, photo.crop], antialias=True)
    return (F.horizontal_flip(view) if photo.flipped else view).permute(1, 2, 0).numpy()


def _cv2(photo: Photo) -> Any:
    top, left, height, width = photo.box
    part = simplejpeg.decode_jpeg(photo.data, "RGB")[top : top + height, left : left + width]
    mode = cv2.INTER_AREA if min(height, width) >= photo.crop else cv2.INTER_LINEAR
    view = cv2.resize(part, (photo.crop, photo.crop), interpolation=mode)
    return cv2.flip(view, 1) if photo.flipped else view


WAYS: dict[str, Callable[[Photo], Any]] = {
    OURS: _ours,
    USERS: _users,
    "torchvision v2 on PIL, uint8": _torchvision_uint8,
    PIL: _pil,
    "torchvision decode, v2 on tensors, uint8": _tensors,
    "simplejpeg, PIL resize(box=), uint8": _simplejpeg_pil,
    "simplejpeg, cv2 area or linear, uint8": _cv2,
    "simplejpeg decode alone": lambda photo: simplejpeg.decode_jpeg(photo.data, "RGB"),
}


def measure(encoded: list[bytes], crop: int, repeats: int) -> dict[str, Any]:
    """Images per second of one core's time (CPU seconds of this one thread), in turn; and the pixels' distances."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    photos = [Photo(number, data, crop) for number, data in enumerate(encoded)]
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    batch: list[Any] = [None] * 64  # as a loader does, keep some; freed at once, memory would stay warm
    for _ in range(repeats):
        for name, way in WAYS.items():
            began = time.process_time()
            for slot, photo in enumerate(photos):
                batch[slot % len(batch)] = way(photo)
            rates[name].append(len(photos) / (time.process_time() - began))
    pictures = [name for name in WAYS if name not in (USERS, "simplejpeg decode alone")]
    distances = {name: _distance(WAYS[name], photos) for name in pictures}
    return {"images": len(photos), "images_per_s": rates, "distance": distances}


def _distance(way: Callable[[Photo], Any], photos: list[Photo]) -> dict[str, float]:
    """From torchvision's antialiased view: levels of 255, over all pixels and of the worst image."""
    counts, worst = np.zeros(256, dtype=np.int64), 0.0
    for photo in photos:
        theirs = np.asarray(_reference(photo)).astype(np.int16)
        difference = abs(np.asarray(way(photo)).astype(np.int16) - theirs)
        counts += np.bincount(difference.ravel(), minlength=256)
        worst = max(worst, float(difference.mean()))
    share = np.cumsum(counts) / counts.sum()
    levels = np.arange(256)
    return {
        "mean": float((counts * levels).sum() / counts.sum()),
        "p95": int(np.searchsorted(share, 0.95)),
        "worst_image_mean": worst,
    }


def markdown(found: dict[str, Any]) -> str:
    """A row for each way."""
    rates, rows = found["images_per_s"], []
    for name, values in rates.items():
        distance = found["distance"].get(name)
        far = f"{distance['mean']:.3f} / {distance['p95']} / {distance['worst_image_mean']:.2f}" if distance else ""
        rows.append([name, spread(values), spread(ratios(rates[OURS], values)), far])
    head = [
        "decode, random crop, flip",
        "images/s of a core",
        "ours over it",
        "distance: mean / p95 / worst image's mean",
    ]
    return table(head, rows)
