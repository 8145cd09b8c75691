import dataclasses
import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from shards import instance
from shards.draws import Stream, normal, uniform, words
from shards.errors import InputError
from shards.instance import draw, flip, probabilities, projection, rates, thumbnail
from shards.progress import Progress
from shards.readers import digits
from shards.readers.record import Record, Source

Picture = Callable[..., Image.Image]


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()


def source(images: list[bytes], labels: list[int], classes: int = 3) -> Source:
    assert len(images) == len(labels)
    records = [Record(f"{i:04d}.png", "png", labels[i], content=data) for i, data in enumerate(images)]
    return Source("test", "train", tuple("abcdefghij"[:classes]), records)


def labels_of(data: Source) -> np.ndarray:
    return np.array([record.label for record in data.records], dtype=np.int32)


@pytest.fixture(scope="module")
def train() -> Source:
    """719 digits."""
    whole = digits.read(None, "train")
    return dataclasses.replace(whole, records=whole.records[::2])


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.4, 0.97])
def test_rates_are_a_truncated_normal(rate: float) -> None:
    q = rates(20_000, rate, 0)
    expected = stats.truncnorm((0 - rate) / 0.1, (1 - rate) / 0.1, loc=rate, scale=0.1)
    assert q.min() >= 0 and q.max() <= 1
    assert stats.kstest(q, expected.cdf).pvalue > 1e-3
    assert np.array_equal(rates(100, rate, 0), q[:100])
    assert not np.array_equal(rates(100, rate, 1), q[:100])


def test_normals_are_normal_and_any_part_can_be_had_alone() -> None:
    z = normal(100_001, 7, Stream.NOISE_PROJECTION)
    assert stats.kstest(z, stats.norm.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(z[:-1:2], z[1::2])[0, 1]) < 0.02
    assert np.array_equal(normal(10, 7, Stream.NOISE_PROJECTION, skip=400), z[400:410])
    assert np.array_equal(words(5, 7, Stream.NOISE_RATE, skip=8), words(13, 7, Stream.NOISE_RATE)[8:])
    one, two = ((word >> 11) / 2**53 for word in words(2, 7, Stream.NOISE_PROJECTION).tolist())
    radius = math.sqrt(-2 * math.log(1 - one))
    assert z[:2] == pytest.approx([radius * math.cos(2 * math.pi * two), radius * math.sin(2 * math.pi * two)])
    u = uniform(100_000, 7, Stream.NOISE_CLASS)
    assert u.min() >= 0 and u.max() < 1 and stats.kstest(u, "uniform").pvalue > 1e-3


def test_each_class_has_its_own_projection() -> None:
    first, second = projection(0, 5, 3), projection(1, 5, 3)
    assert first.shape == (3072, 5)
    assert abs(np.corrcoef(first.reshape(-1), second.reshape(-1))[0, 1]) < 0.03
    assert np.array_equal(second.reshape(-1), normal(2 * 3072 * 5, 3, Stream.NOISE_PROJECTION)[3072 * 5 :])


def test_labels_follow_the_formula(train: Source) -> None:
    """The whole algorithm again for some images, written another way, from the same W, q and uniform numbers."""
    y = labels_of(train)
    noisy, bad = flip(train, y, 0.4, 5, Progress())
    assert bad == 0
    pixels = []
    for record in train.records:
        with Image.open(io.BytesIO(record.content)) as image:
            pixels.append(np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.LANCZOS), dtype=float))
    x = np.stack(pixels)
    x = (x - x.mean(axis=(0, 1, 2))) / x.std(axis=(0, 1, 2))
    q, u = rates(len(y), 0.4, 5), uniform(len(y), 5, Stream.NOISE_CLASS)
    for n in range(0, len(y), 9):
        weights = projection(int(y[n]), 10, 5).reshape(32, 32, 3, 10)
        scores = {k: float((x[n] * weights[..., k]).sum()) for k in range(10) if k != y[n]}
        top = max(scores.values())
        total = sum(math.exp(score - top) for score in scores.values())
        chance = {k: float(q[n]) * math.exp(score - top) / total for k, score in scores.items()}
        chance[int(y[n])] = 1 - float(q[n])
        reached = 0.0
        for label in range(10):
            reached += chance[label]
            if reached > u[n]:
                break
        assert noisy[n] == label


def test_the_share_of_wrong_labels_is_near_the_rate(train: Source) -> None:
    y = labels_of(train)
    for rate in (0.2, 0.5):
        noisy, _ = flip(train, y, rate, 1, Progress())
        expected = stats.truncnorm(-rate / 0.1, (1 - rate) / 0.1, loc=rate, scale=0.1).mean()
        # A label is wrong with chance E[q], independently: five deviations of the binomial.
        assert abs(np.mean(noisy != y) - expected) < 5 * math.sqrt(expected * (1 - expected) / len(y))


def test_the_wrong_label_depends_on_the_image_and_the_class(picture: Picture) -> None:
    """Twelve images, each 30 times as class 0 and 30 times as class 1."""
    images = [encoded(picture(seed)) for seed in range(12) for _ in range(60)]
    data = source(images, [0, 1] * 360, classes=10)
    noisy = flip(data, labels_of(data), 0.7, 0, Progress())[0].reshape(12, 30, 2)
    usual, share = np.zeros((12, 2), dtype=int), np.zeros((12, 2))
    for image, label in np.ndindex(12, 2):
        wrong = noisy[image, :, label][noisy[image, :, label] != label]
        usual[image, label] = np.bincount(wrong).argmax()
        share[image, label] = np.mean(wrong == usual[image, label])
    # Scores are sums of 3,072 products: one class mostly wins by far, and which one is any of the other nine.
    assert np.median(share) > 0.9
    assert all(len(set(column)) >= 4 for column in usual.T.tolist())
    assert np.mean(usual[:, 0] != usual[:, 1]) > 0.5


def test_probabilities_by_hand() -> None:
    scores = np.array([[50.0, math.log(3), 0.0], [1e5, -1e5, 0.0]])
    p = probabilities(scores, 0, np.array([0.4, 1.0]))
    assert p[0] == pytest.approx([0.6, 0.3, 0.1])
    assert p[1].tolist() == [0, 0, 1]
    assert probabilities(scores, 2, np.array([0.0, 0.0])).tolist() == [[0, 0, 1], [0, 0, 1]]
    assert scores[0, 0] == 50


def test_draws_by_hand() -> None:
    p = np.array([[0.25, 0.0, 0.75]] * 5)
    assert draw(p, np.array([0.0, 0.2499, 0.25, 0.5, 1 - 2.0**-53])).tolist() == [0, 0, 2, 2, 2]
    short = np.array([[0.5, 0.5 - 2.0**-50, 0.0]])  # a sum that rounding left below 1
    assert draw(short, np.array([1 - 2.0**-53])).tolist() == [1]


def test_is_a_function_of_the_seed_whatever_the_chunks(train: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    y = labels_of(train)[:300]
    data = source([record.content for record in train.records[:300]], y.tolist(), 10)
    first, _ = flip(data, y, 0.4, 0, Progress())
    monkeypatch.setattr(instance, "CHUNK", 7)
    assert np.array_equal(flip(data, y, 0.4, 0, Progress())[0], first)
    assert not np.array_equal(flip(data, y, 0.4, 1, Progress())[0], first)


def test_a_part_of_many_images_gives_the_scale(train: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance, "MEASURED", 100)
    counted = []

    class Counting(Progress):
        def start(self, total: int, unit: str) -> None:
            counted.append(total)

        def advance(self, count: int) -> None:
            counted.append(-count)

    y = labels_of(train)
    noisy, _ = flip(train, y, 0.4, 0, Counting())
    assert counted[0] == 100 + len(y) and sum(counted) == 0
    monkeypatch.undo()
    assert np.mean(flip(train, y, 0.4, 0, Progress())[0] == noisy) > 0.9


def test_images_that_cannot_be_decoded_keep_their_label(picture: Picture) -> None:
    good = [encoded(picture(i)) for i in range(120)]
    cut = encoded(picture(7, 200, 150), "JPEG")[:400]
    images = [*good, b"", b"<html>404</html>", cut]
    data = source(images, [0, 1, 2] * 41)
    noisy, bad = flip(data, labels_of(data), 0.99, 0, Progress())
    assert bad == 3
    assert noisy[-3:].tolist() == [0, 1, 2]
    assert np.mean(noisy[:-3] != labels_of(data)[:-3]) > 0.7
    # They do not move the scale of the others either.
    alone = source(good, [0, 1, 2] * 40)
    assert np.array_equal(flip(alone, labels_of(alone), 0.99, 0, Progress())[0], noisy[:-3])
    none = source([b""] * 3, [0, 1, 2])
    assert flip(none, labels_of(none), 0.9, 0, Progress())[0].tolist() == [0, 1, 2]


def test_constant_images_have_a_scale() -> None:
    data = source([encoded(Image.new("RGB", (5, 5), (9, 0, 255)))] * 60, [0, 1] * 30, 2)
    noisy, _ = flip(data, labels_of(data), 0.5, 0, Progress())
    assert 10 < np.count_nonzero(noisy != labels_of(data)) < 50


def test_thumbnails_are_small_colour_pictures_of_any_mode(picture: Picture) -> None:
    for mode in ("RGB", "L", "P", "1", "RGBA", "CMYK"):
        image = picture(3, 90, 40, mode)
        form = "JPEG" if mode == "CMYK" else "PNG"
        pixels = thumbnail(Record("a", "png", 0, content=encoded(image, form)), source([], []))
        assert pixels is not None and pixels.dtype == np.uint8 and pixels.shape == (3072,)
        expected = np.asarray(picture(3, 90, 40).resize((32, 32), Image.Resampling.BOX), dtype=float)
        if mode in ("RGB", "RGBA", "CMYK"):
            assert np.abs(pixels.reshape(32, 32, 3) - expected).mean() < 12
    same = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pixels = thumbnail(Record("a", "png", 0, content=encoded(Image.fromarray(same))), source([], []))
    assert np.array_equal(pixels, same.reshape(-1))


def test_a_file_that_cannot_be_read_is_named(picture: Picture, tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    records = [Record("a.png", "png", 0), Record("gone.png", "png", 1)]
    data = Source("test", "train", ("a", "b"), records, tmp_path)
    with pytest.raises(InputError, match=r"gone\.png: cannot be read \(No such file or directory\)"):
        flip(data, labels_of(data), 0.4, 0, Progress())
