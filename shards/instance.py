"""Noise that depends on the image: Xia et al., "Part-dependent Label Noise" (NeurIPS 2020), algorithm 2."""

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.draws import Stream, normal, uniform
from shards.errors import InputError
from shards.image import FORMATS, MAX_PIXELS, rgb, untrusted
from shards.progress import Progress
from shards.readers.record import Record, Source, content

SIDE = 32  # pixels; CIFAR's, where the method was published
FEATURES = SIDE * SIDE * 3
SPREAD = 0.1  # standard deviation of the images' rates
MEASURED = 1 << 16  # images whose pixels give the scale of all: every one of CIFAR's, a fair part of a million
CHUNK = 64  # images a thread takes at a time; 1.5 MB of float64


def flip(
    source: Source, labels: NDArray[np.int32], rate: float, seed: int, progress: Progress
) -> tuple[NDArray[np.int32], int]:
    """Return noisy labels, int32 [N], and the number of images that cannot be decoded; these keep their label.

    labels: int32 [N], the true ones. Image n of class y gets its label from `probabilities`, with its own rate q_n
    (`rates`) and its scores x_n W_y (`projection`). x_n: its pixels at 32x32 RGB, less each channel's mean over the
    dataset, divided by its standard deviation.

    Memory holds one class's W (3,072 x K numbers) and a few images a thread, however many images there are. Raises
    InputError where a file cannot be read.
    """
    num_classes = len(source.classes)
    own_rates = rates(len(labels), rate, seed)
    levels = uniform(len(labels), seed, Stream.NOISE_CLASS)
    measured = np.arange(min(len(labels), MEASURED)) * len(labels) // min(len(labels), MEASURED)
    by_class = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=num_classes))
    noisy, bad = labels.copy(), 0
    # Threads: Pillow and numpy's products let others run meanwhile, and nothing has to be copied to them.
    with untrusted(), ThreadPoolExecutor(min(16, len(os.sched_getaffinity(0)))) as pool:
        progress.start(len(measured) + len(labels), "images read for the noise")
        mean, deviation = _scale(source, measured, pool, progress)
        for label, members in enumerate(np.split(by_class, ends[:-1])):
            if not len(members):
                continue
            weights = projection(label, num_classes, seed)

            def some(
                ids: NDArray[np.int64], label: int = label, weights: NDArray[np.float64] = weights
            ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
                pixels, read = _thumbnails(source, ids)
                scores = (pixels - mean) / deviation @ weights
                return read, draw(probabilities(scores, label, own_rates[read]), levels[read])

            for ids, (read, drawn) in zip(_chunks(members), pool.map(some, _chunks(members)), strict=True):
                noisy[read] = drawn
                bad += len(ids) - len(read)
                progress.advance(len(ids))
    progress.close()
    return noisy, bad


def rates(count: int, rate: float, seed: int) -> NDArray[np.float64]:
    """Return q, float64 [count]: each image's chance of a wrong label, from N(rate, 0.1**2) truncated to [0, 1]."""
    standard = NormalDist()
    low, high = standard.cdf(-rate / SPREAD), standard.cdf((1 - rate) / SPREAD)
    levels = low + (high - low) * uniform(count, seed, Stream.NOISE_RATE)
    levels = np.clip(levels, 2.0**-1000, 1 - 2.0**-53)  # the inverse has no value at 0 and 1
    return np.clip(rate + SPREAD * np.array([standard.inv_cdf(level) for level in levels.tolist()]), 0, 1)


def projection(label: int, num_classes: int, seed: int) -> NDArray[np.float64]:
    """Return W of one class, float64 [3072, K] of standard normals; row, column and channel of a pixel give the row."""
    size = FEATURES * num_classes
    return normal(size, seed, Stream.NOISE_PROJECTION, skip=label * size).reshape(FEATURES, num_classes)


def probabilities(scores: NDArray[np.float64], label: int, own_rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each image's chance of each label, float64 [B, K]: 1 - q for its own, q * softmax of the others' scores.

    scores: float64 [B, K]. label: the true class of them all. own_rates: q, float64 [B].
    """
    others = scores.copy()
    others[:, label] = -np.inf
    weights = np.exp(others - others.max(axis=1, keepdims=True))
    chances = own_rates[:, None] * weights / weights.sum(axis=1, keepdims=True)
    chances[:, label] = 1 - own_rates
    return chances


def draw(chances: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return a label for each row of `chances` ([B, K]) where their running sum passes its level in [0, 1) ([B])."""
    sums = np.cumsum(chances, axis=1)
    return np.argmax(sums > levels[:, None] * sums[:, -1:], axis=1)


def thumbnail(record: Record, source: Source) -> NDArray[np.uint8] | None:
    """Return an image at 32x32 RGB as uint8 [3072], None where it cannot be decoded.

    Lanczos; the sides' ratio is not kept and transparency is dropped. Raises InputError where it cannot be read.
    """
    try:
        data = content(record, source.root)
    except OSError as error:
        raise InputError(f"{source.root}/{record.key}: cannot be read ({error.strerror}); mend or remove it") from None
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            image.draft(None, (2 * SIDE, 2 * SIDE))  # a JPEG is decoded at a fraction of its size, much faster
            small = rgb(image).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    except Exception:  # Pillow's parsers let through whatever they stumble on
        return None
    return np.asarray(small).reshape(-1)


def _thumbnails(source: Source, ids: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the pixels of those that can be decoded, float64 [D, 3072], and their ids [D]."""
    found = [(i, pixels) for i in ids.tolist() if (pixels := thumbnail(source.records[i], source)) is not None]
    stacked = np.array([pixels for _, pixels in found], dtype=np.float64).reshape(-1, FEATURES)
    return stacked, np.array([i for i, _ in found], dtype=np.int64)


def _scale(
    source: Source, ids: NDArray[np.int64], pool: ThreadPoolExecutor, progress: Progress
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of each feature's channel, float64 [3072] each."""

    def some(ids: NDArray[np.int64]) -> NDArray[np.float64]:
        pixels = _thumbnails(source, ids)[0].reshape(-1, 3)
        return np.array([np.full(3, len(pixels)), pixels.sum(axis=0), (pixels**2).sum(axis=0)])

    total = np.zeros((3, 3))  # sums of whole numbers below 2**53: exact, in any order
    for part, done in zip(_chunks(ids), pool.map(some, _chunks(ids)), strict=True):
        total += done
        progress.advance(len(part))
    _, once, squared = total / np.maximum(total[0], 1)
    deviation = np.sqrt(squared - once**2)
    deviation[deviation == 0] = 1  # a channel of one value says nothing
    return np.tile(once, SIDE * SIDE), np.tile(deviation, SIDE * SIDE)


def _chunks(ids: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK))
