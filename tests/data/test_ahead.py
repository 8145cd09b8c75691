"""Shards are fetched before they are needed, no further than there is room, and training never notices a failure."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import server as web
import torch
from server import Server, serving

from pipeline.data import ahead
from pipeline.data.ahead import Ahead
from pipeline.data.inorder import InOrder
from pipeline.data.loader import EvalBatches, Feed, TrainBatches, eval_keys, lanes_of_a_worker, train_keys
from pipeline.data.plan import Need, Plan
from shards.build import build
from shards.cache import Cache
from shards.errors import InputError
from shards.manifest import Manifest
from shards.readers import find

VIEW = {"crop": 16, "augment": "resized_crop", "flip": True, "max_pixels": 10**6}


@pytest.fixture(scope="module")
def small(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """120 images in 24 shards."""
    out = tmp_path_factory.mktemp("small") / "train"
    return build(find("imagefolder")(raw, None), out, samples_per_shard=5, workers=1)


@pytest.fixture
def served(small: Manifest) -> Iterator[Server]:
    with serving(small.root) as server:
        yield server


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_LOOK", 0.01)
    monkeypatch.setattr(ahead, "_PAUSE", 0.05)


def order(manifest: Manifest) -> Plan:
    """Two lanes of 12 shards each, in blocks of 2; 20 steps an epoch, so that a block lasts 3 or 4 steps."""
    return Plan(manifest, lanes=2, micro_batch=3, seed=1, shuffle_shards=2)


def remote(served: Server, small: Manifest, folder: Path, shards: float) -> Manifest:
    """Through a cache with room for so many shards, which are of nearly equal size."""
    largest = max(shard.bytes for shard in small.shards)
    table = sum(file.bytes for file in small.files.values())
    return Manifest.load(served.url, Cache(folder, bytes=table + int(shards * largest), seconds=5))


def soon(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def fetched(served: Server) -> set[str]:
    return {name for name in served.asked if name.endswith(".tar")}


def test_all_of_a_rank_and_nothing_else_is_fetched_in_the_order_of_need(
    served: Server, small: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "_THREADS", 1)
    manifest, plan = remote(served, small, tmp_path, 40), order(small)
    Ahead(manifest, plan, range(1, 2), 0, plan.steps_per_epoch, 1)
    wanted = [small.shards[need.shard].name for need in plan.needs(0, 1)]
    soon(lambda: len(fetched(served)) == len(wanted))
    assert [name for name in served.asked if name.endswith(".tar")] == wanted
    assert len(wanted) == 12


def test_it_stays_within_its_share_and_follows_training(served: Server, small: Manifest, tmp_path: Path) -> None:
    manifest, plan = remote(served, small, tmp_path, 13), order(small)
    walk = Ahead(manifest, plan, range(2), 0, 3 * plan.steps_per_epoch, 2)  # half of 13: 6 shards
    soon(lambda: len(fetched(served)) == 6)
    time.sleep(0.2)
    visits = sorted((need.first, lane, need.shard) for lane in range(2) for need in plan.needs(0, lane))
    assert len(fetched(served)) == 6
    first_blocks = {small.shards[shard].name for first, _, shard in visits if first == 0}
    assert first_blocks <= fetched(served)
    walk.reached(10)
    done = {need.shard for lane in range(2) for need in plan.needs(0, lane) if need.last < 10}
    soon(lambda: len(fetched(served)) == 6 + len(done))
    walk.close()


def test_from_the_middle_on_nothing_that_was_read_is_fetched(served: Server, small: Manifest, tmp_path: Path) -> None:
    manifest, plan = remote(served, small, tmp_path, 40), order(small)
    Ahead(manifest, plan, range(2), 15, plan.steps_per_epoch, 1)
    wanted = {small.shards[n.shard].name for lane in range(2) for n in plan.needs(0, lane) if n.last >= 15}
    soon(lambda: fetched(served) == wanted)
    time.sleep(0.1)
    assert fetched(served) == wanted
    assert len(wanted) < 24


def test_what_fails_is_left_to_the_worker(served: Server, small: Manifest, tmp_path: Path) -> None:
    manifest, plan = remote(served, small, tmp_path, 40), order(small)
    bad = small.shards[plan.needs(0, 0)[0].shard].name
    served.always[bad] = web.status(500)
    Ahead(manifest, plan, range(2), 0, plan.steps_per_epoch, 1)
    soon(lambda: len(fetched(served)) == 24)
    soon(lambda: served.asked[bad] == 2)
    del served.always[bad]
    index = plan.needs(0, 0)[0].shard
    assert manifest.shard_path(index).read_bytes() == small.shard_path(index).read_bytes()


def test_what_cannot_be_asked_for_is_left_to_the_worker_too(
    small: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package of an address may be missing: the one line about it comes from who needs the shard."""
    file = Path(shutil.copytree(small.root, tmp_path / "here")) / "manifest.json"
    document = json.loads(file.read_text())
    for shard in document["shards"]:
        shard["place"] = "unheard-of://host/folder"
    file.write_text(json.dumps(document))
    manifest, plan = Manifest.load(tmp_path / "here", Cache(tmp_path / "cache", seconds=5)), order(small)
    raised: list[object] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    before = set(threading.enumerate())
    Ahead(manifest, plan, range(2), 0, plan.steps_per_epoch, 1)
    started = set(threading.enumerate()) - before
    soon(lambda: not any(thread.is_alive() for thread in started))
    assert not raised
    with pytest.raises(InputError, match="fsspec knows no unheard-of://"):
        manifest.shard_path(0)


def test_shards_at_a_server_are_fetched_for_a_manifest_that_lies_here(
    served: Server, small: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the shards lie here too, and are left alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # a cache that is given by name stands before folders too
    file = Path(shutil.copytree(small.root, tmp_path / "here")) / "manifest.json"
    document = json.loads(file.read_text())
    for shard in document["shards"][::2]:
        shard["place"] = served.url
        (tmp_path / "here" / shard["name"]).unlink()
    file.write_text(json.dumps(document))
    manifest, plan = Manifest.load(tmp_path / "here", Cache(seconds=5)), order(small)
    assert manifest.fingerprint == small.fingerprint
    walk = Ahead(manifest, plan, range(2), 0, plan.steps_per_epoch, 1)
    soon(lambda: fetched(served) == {shard.name for shard in small.shards[::2]})
    assert walk.warning() is None
    assert [manifest.store_of(i) is None for i in range(4)] == [False, True, False, True]
    for index in range(len(small.shards)):
        assert manifest.shard_path(index).read_bytes() == small.shard_path(index).read_bytes()
    assert set(served.asked.values()) == {1}
    walk.close()
    little = Manifest.load(tmp_path / "here", Cache(bytes=9000, seconds=5))
    warning = Ahead(little, plan, range(2), 0, plan.steps_per_epoch, 1).warning()
    assert warning is not None
    assert "data.cache_gb = 9e-06 is too little" in warning


def test_a_local_folder_needs_no_threads(small: Manifest) -> None:
    before = threading.active_count()
    walk = Ahead(small, order(small), range(2), 0, 9, 1)
    walk.reached(3)
    assert threading.active_count() == before
    assert walk.warning() is None
    walk.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_smaller_than_what_is_read_at_once_is_slow_never_wrong(
    served: Server, small: Manifest, tmp_path: Path, workers: int
) -> None:
    manifest, plan = remote(served, small, tmp_path, 1.5), order(small)
    walk = Ahead(manifest, plan, range(2), 0, 8, 1)
    warning = walk.warning()
    assert warning is not None
    assert "is too little for the" in warning
    keys = list(train_keys(plan, range(2), 0, 8))
    local = TrainBatches(small, plan, small.labels, **VIEW)
    feed = Feed(
        TrainBatches(manifest, plan, manifest.labels, lanes=lanes_of_a_worker(2, workers), **VIEW),
        keys,
        workers,
        pin=False,
    )
    try:
        for key in keys:
            ours, theirs = local[key], next(feed)
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.labels, theirs.labels)
            assert theirs.valid.all()
    finally:
        feed.close()
        walk.close()
    assert max(served.asked.values()) > 1  # it was slow
    largest, store = max(shard.bytes for shard in small.shards), manifest.store
    assert store is not None
    used = sum(path.stat().st_size for path in store.cache.root.rglob("*") if path.is_file())
    assert used <= store.cache.bytes + max(1, workers) * largest


@pytest.mark.parametrize("lanes", [1, 2, 8, 12])
def test_a_worker_reads_so_many_lanes(small: Manifest, lanes: int) -> None:
    plan = Plan(small, lanes=lanes, micro_batch=2, seed=0)
    for workers in (0, 1, 2, 3, 4, 6, 8, 16):
        keys = list(train_keys(plan, range(lanes), 3, 4 + 2 * max(1, workers)))
        seen = {lane for _, _, lane in keys[1 :: max(1, workers)]}
        assert lanes_of_a_worker(lanes, workers) == len(seen)


def test_no_warning_where_all_fits(served: Server, small: Manifest, tmp_path: Path) -> None:
    plan = order(small)
    # Two lanes, two shards each; two ranks share the cache.
    assert Ahead(remote(served, small, tmp_path, 8.1), plan, range(2), 0, 1, 2).warning() is None
    warning = Ahead(remote(served, small, tmp_path, 7), plan, range(2), 0, 1, 2).warning()
    assert warning is not None


def test_an_evaluation_is_fetched_ahead_but_only_so_far(
    served: Server, small: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard is a batch here; at most one for each thread is there before its turn: training goes on afterwards."""
    monkeypatch.setattr(ahead, "_THREADS", 2)
    manifest = remote(served, small, tmp_path, 40)
    dataset = EvalBatches(manifest, crop=16, augment="resized_crop", max_pixels=10**6)
    keys = list(eval_keys(60, 5, 1, 2))
    feed = Feed(dataset, keys, 0, pin=False, ahead=dataset.ahead(keys, workers=0, share=1))
    names = [shard.name for shard in small.shards]
    for batch in range(3):
        soon(lambda there=6 + batch + 3: fetched(served) == set(names[6:there]))  # its own and two more
        time.sleep(0.05)
        assert len(fetched(served)) == batch + 3
        assert next(feed).positions.tolist() == list(range(*keys[batch]))
    feed.close()
    assert set(served.asked.values()) == {1}


def test_when_an_evaluation_reads_which_shard() -> None:
    sizes, ids = np.array([4, 3, 5, 2]), np.array([1, 3, 7, 8, 11, 12])
    assert InOrder(sizes, ids, [(0, 4), (4, 6)]).needs(0, 0) == [Need(0, 0, 0), Need(2, 0, 1), Need(3, 1, 1)]
    assert InOrder(sizes, ids, []).needs(0, 0) == []
