"""Two views of each image: one decoding, two draws; the first is that of a run which needs no other."""

from contextlib import closing

import pytest
import torch

from pipeline.data import loader
from pipeline.data.augment import sample_rng, train_view
from pipeline.data.batch import Batch
from pipeline.data.decode import UndecodableImageError, decode
from pipeline.data.loader import Feed, TrainBatches, train_keys
from pipeline.data.plan import Plan
from pipeline.data.reader import ShardReader
from shards.manifest import Manifest

VIEW = {"crop": 16, "augment": "resized_crop", "max_pixels": 10**6, "flip": True}


def read(manifest: Manifest, views: int, workers: int) -> list[Batch]:
    plan = Plan(manifest, lanes=4, micro_batch=7, seed=5, shuffle_shards=2)
    dataset = TrainBatches(manifest, plan, manifest.labels, views=views, **VIEW)
    with closing(Feed(dataset, train_keys(plan, range(4), 3, 6), workers, pin=False)) as feed:
        return list(feed)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_view_is_the_only_one_of_others_and_the_second_has_draws_of_its_own(
    photos: Manifest, workers: int
) -> None:
    reader = ShardReader(photos)
    one, two = read(photos, 1, 0), read(photos, 2, workers)
    assert len(one) == len(two) == 12
    for step, (single, both) in enumerate(zip(one, two, strict=True)):
        assert single.images.shape == (7, 16, 16, 3) and both.images.shape == (2, 7, 16, 16, 3)
        assert torch.equal(single.images, both.images[0])
        assert torch.equal(single.first_view, single.images) and torch.equal(both.first_view, single.images)
        assert torch.equal(single.positions, both.positions) and torch.equal(single.labels, both.labels)
        epoch = (3 + step // 4) // 4
        for slot, sample in enumerate(both.positions.tolist()):
            pixels = decode(reader.image_bytes(sample), 10**6)
            view = train_view(pixels, 16, "resized_crop", True, sample_rng(5, epoch, sample, 1))
            assert (both.images[1, slot].numpy() == view).all()
            assert not torch.equal(both.images[0, slot], both.images[1, slot])


def test_an_image_is_decoded_once_and_a_bad_one_lacks_in_every_view(
    photos: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read(photos, 2, 0)[0]
    calls = []

    def decoding(data: bytes, max_pixels: int):
        calls.append(data)
        if len(calls) in (1, 4, 5):
            raise UndecodableImageError("damaged")
        return decode(data, max_pixels)

    monkeypatch.setattr(loader, "decode", decoding)
    plan = Plan(photos, lanes=4, micro_batch=7, seed=5, shuffle_shards=2)
    batch = TrainBatches(photos, plan, photos.labels, views=2, **VIEW)[0, 3, 0]
    assert len(calls) == 7
    assert batch.valid.tolist() == [False, True, True, False, False, True, True]
    for view, expected in zip(batch.images, whole.images, strict=True):
        assert torch.equal(view, expected[[1, 1, 2, 2, 2, 5, 6]])
