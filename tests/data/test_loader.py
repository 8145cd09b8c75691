"""Batches: the plan's order whatever the workers, and the policy for images that do not decode."""

import io
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from server import serving, stalls

from pipeline.data.augment import sample_rng, train_view
from pipeline.data.batch import Batch
from pipeline.data.decode import decode
from pipeline.data.frames import AHEAD, Arrivals, Frames
from pipeline.data.loader import EvalBatches, Feed, TrainBatches, eval_keys, train_keys
from pipeline.data.pixels import normalise
from pipeline.data.plan import Plan
from pipeline.data.reader import ShardReader
from shards.build import build
from shards.cache import Cache
from shards.errors import OwnError
from shards.manifest import Manifest
from shards.readers import find

VIEW = {"crop": 16, "augment": "resized_crop", "max_pixels": 10**6}


def planned(manifest: Manifest, start: int, stop: int, workers: int, lanes: range | None = None) -> list[Batch]:
    plan = Plan(manifest, lanes=4, micro_batch=7, seed=5, shuffle_shards=2)
    keys = train_keys(plan, lanes or range(4), start, stop)
    with closing(
        Feed(TrainBatches(manifest, plan, manifest.labels, flip=True, **VIEW), keys, workers, pin=False)
    ) as feed:
        return list(feed)


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("images", "labels", "positions", "valid"))


def test_batches_are_the_plans_for_any_workers_from_any_start(photos: Manifest) -> None:
    everything = planned(photos, 0, 10, workers=0)
    assert len(everything) == 40
    in_workers = planned(photos, 0, 10, workers=2)
    assert all(same(a, b) for a, b in zip(everything, in_workers, strict=True))
    later = planned(photos, 6, 10, workers=3, lanes=range(2, 4))
    expected = [everything[4 * step + lane] for step in range(6, 10) for lane in (2, 3)]
    assert all(same(a, b) for a, b in zip(expected, later, strict=True))


def test_a_batch_holds_the_samples_of_its_ids(photos: Manifest) -> None:
    plan = Plan(photos, lanes=4, micro_batch=7, seed=5, shuffle_shards=2)
    batch = planned(photos, 5, 6, workers=0)[3]
    ids = plan.lane_batch(1, 5 - plan.steps_per_epoch, 3)
    assert plan.steps_per_epoch == 4
    assert batch.positions.tolist() == ids.tolist()
    assert batch.labels.tolist() == photos.labels[ids].tolist()
    assert batch.valid.all()
    raw = ShardReader(photos).image_bytes(int(ids[2]))
    view = train_view(decode(raw, 10**6), 16, "resized_crop", True, sample_rng(5, 1, int(ids[2])))
    assert (batch.images[2].numpy() == view).all()


def test_batches_stay_as_they_came_while_workers_run_ahead(photos: Manifest) -> None:
    """Workers use their memory again: neither the batch in hand nor those that were kept may be written over."""
    plan = Plan(photos, lanes=4, micro_batch=7, seed=5, shuffle_shards=2)
    dataset = TrainBatches(photos, plan, photos.labels, flip=True, **VIEW)
    keys = list(train_keys(plan, range(4), 0, 12))
    expected = [dataset[key] for key in keys]
    seen = []
    with closing(Feed(dataset, keys, 2, pin=False)) as feed:
        for number, batch in enumerate(feed):
            if number % 12 == 0:
                time.sleep(0.3)  # by now both workers have prepared all that they may
            assert same(batch, expected[number])
            seen.append(batch)
    assert len(seen) == 48
    assert all(same(a, b) for a, b in zip(seen, expected, strict=True))


def test_a_worker_has_one_place_more_than_it_prepares_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.frames.get_worker_info", object)
    frames = Frames()
    taken = [frames.take(2, 3) for _ in range(2 * (AHEAD + 1))]
    places = [tensor.data_ptr() for tensor in taken]
    assert len(set(places)) == AHEAD + 1
    assert places[: AHEAD + 1] == places[AHEAD + 1 :]
    assert all(tensor.is_shared() for tensor in taken)
    assert frames.take(4, 3).shape == (4, 3)  # larger than what was there
    copy = Arrivals(1).copy(taken[1].fill_(7))
    taken[1].zero_()
    assert copy.eq(7).all()


def test_a_workers_labels_are_the_mapped_table_unless_they_are_others(photos: Manifest) -> None:
    """For each worker a copy of millions of labels would be sent and kept."""
    plan = Plan(photos, lanes=4, micro_batch=7, seed=5)
    others = photos.labels[::-1].copy()
    for labels, mapped in ((photos.labels, True), (others, False)):
        there = pickle.loads(pickle.dumps(TrainBatches(photos, plan, labels, flip=True, **VIEW)))
        assert np.may_share_memory(there._labels, there._manifest.table) == mapped
        assert there[0, 0, 1].labels.tolist() == labels[plan.lane_batch(0, 0, 1)].tolist()


def test_reading_draws_nothing_from_torchs_random_numbers(photos: Manifest) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    planned(photos, 0, 1, workers=0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("world", [1, 2, 3, 7, 60])
def test_evaluation_reads_every_image_once_at_any_world_size(clean_photos: Manifest, world: int) -> None:
    dataset = EvalBatches(clean_photos, **VIEW)
    found = []
    for rank in range(world):
        keys = eval_keys(clean_photos.num_samples, 10, rank, world)
        found += [int(i) for batch in Feed(dataset, keys, 0, pin=False) for i in batch.positions]
    assert found == list(range(47))


@pytest.fixture(scope="module")
def damaged(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Ten images, of which the third and fourth by id do not decode."""
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "raw" / "a").mkdir(parents=True)
    for number in range(10):
        file = folder / "raw" / "a" / f"{number}.jpg"
        file.write_bytes((raw / "class-0" / f"{number:04d}.jpg").read_bytes())
    order = build(find("imagefolder")(folder / "raw", None), folder / "order", workers=1)
    for sample_id in (2, 3):
        file = folder / "raw" / order.key(sample_id)
        file.write_bytes(file.read_bytes()[:200])
    return build(find("imagefolder")(folder / "raw", None), folder / "shards", workers=1)


def test_a_bad_image_keeps_its_slot_with_its_neighbours_pixels(damaged: Manifest) -> None:
    dataset = EvalBatches(damaged, **VIEW)
    batch = dataset[0, 10]
    assert batch.valid.tolist() == [True, True, False, False] + [True] * 6
    assert batch.positions.tolist() == list(range(10))
    assert torch.equal(batch.images[2], batch.images[1])
    assert torch.equal(batch.images[3], batch.images[1])
    assert not torch.equal(batch.images[4], batch.images[1])
    assert [bad.sample_id for bad in batch.bad] == [2, 3]
    assert all(bad.reason for bad in batch.bad)
    # The first of a batch has no previous one: the next good one stands in.
    start = dataset[2, 6]
    assert start.valid.tolist() == [False, False, True, True]
    assert torch.equal(start.images[0], start.images[2])
    assert not dataset[2, 4].valid.any()
    assert not dataset[2, 4].images.any()


def test_a_shard_of_another_length_is_refused(photos: Manifest, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(photos.root, copy)
    manifest = Manifest.load(copy)
    shard = manifest.shard_path(0)
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(OwnError, match=r"its manifest says \d+"):
        ShardReader(manifest).image_bytes(0)
    shard.unlink()
    with pytest.raises(OwnError, match="No such file or directory; mend this, or copy it again"):
        ShardReader(manifest).image_bytes(0)


def test_the_reader_returns_the_files_bytes_and_bounds_its_open_shards(
    raw: Path, photos: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.data.reader._OPEN_SHARDS", 2)
    reader = ShardReader(photos)
    for sample_id in range(photos.num_samples):
        assert reader.image_bytes(sample_id) == (raw / photos.key(sample_id)).read_bytes()
        assert len(reader._descriptors) <= 2
    reader.close()
    assert not reader._descriptors
    before = len(os.listdir("/proc/self/fd"))
    reader.image_bytes(0)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del reader
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("channels_last", [True, False])
def test_normalise_is_totensor_and_normalize(channels_last: bool) -> None:
    from torchvision.transforms import v2

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    theirs = v2.Compose(
        [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )(image)
    pixels = torch.from_numpy(np.array(image))[None].repeat(2, 1, 1, 1)
    ours = normalise(pixels, channels_last)
    assert ours.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    torch.testing.assert_close(ours[1], theirs, atol=1e-5, rtol=1e-5)


def test_workers_leave_signals_to_the_run_and_end_when_closed(photos: Manifest) -> None:
    plan = Plan(photos, lanes=4, micro_batch=7, seed=5)
    others = set(multiprocessing.active_children())
    feed = Feed(
        TrainBatches(photos, plan, photos.labels, flip=True, **VIEW), train_keys(plan, range(4), 0, 9), 2, pin=False
    )
    for _ in range(2):  # one of each worker: both are past their start
        next(feed)
    workers = [psutil.Process(worker.pid) for worker in set(multiprocessing.active_children()) - others]
    assert len(workers) == 2
    for worker in workers:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines())
        ignored = int(status["SigIgn"], 16)
        assert all(ignored >> (number - 1) & 1 for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))
        worker.terminate()
    next(feed)
    feed.close()
    assert not any(worker.is_running() for worker in workers)
    feed.close()


def test_workers_that_wait_for_a_shard_do_not_hold_up_the_end(photos: Manifest, tmp_path: Path) -> None:
    """Left to itself torch waits 10 s for each of them; launchers give a run 30 s to leave."""
    with serving(photos.root) as server:
        server.always |= {shard.name: stalls(60) for shard in photos.shards}
        there = Manifest.load(server.url, Cache(tmp_path, seconds=300))
        plan = Plan(there, lanes=4, micro_batch=7, seed=5)
        dataset = TrainBatches(there, plan, there.labels, flip=True, **VIEW)
        feed = Feed(dataset, train_keys(plan, range(4), 0, 9), 4, pin=False)
        while not any(name.endswith(".tar") for name in server.asked):
            time.sleep(0.01)
        began = time.monotonic()
        feed.close()
        assert time.monotonic() - began < 20  # 40 otherwise


def test_a_program_that_forgets_to_close_still_ends(photos: Manifest) -> None:
    program = f"""
from pipeline.data.loader import *
manifest = Manifest.load({str(photos.root)!r})
plan = Plan(manifest, lanes=4, micro_batch=7, seed=5)
dataset = TrainBatches(manifest, plan, manifest.labels, flip=True, crop=16, augment="none", max_pixels=10**6)
feed = Feed(dataset, train_keys(plan, range(4), 0, 9), 2, pin=False)
next(feed)
raise RuntimeError("on purpose")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "on purpose" in done.stderr


def test_jpeg_written_by_others_reads(photos: Manifest) -> None:
    image = Image.open(io.BytesIO(ShardReader(photos).image_bytes(0)))
    assert image.size == (int(photos.table[0]["width"]), int(photos.table[0]["height"]))
