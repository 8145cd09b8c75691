"""Shards under each other's names, of another build, or of another split behind the same cache."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from epochs import epoch, in_order, same
from rawsmall import sample, write_tar
from server import serving

from shards import places
from shards.build import build
from shards.cache import Cache
from shards.errors import InputError, OwnError
from shards.index import index
from shards.manifest import Manifest
from shards.readers import find
from shards.verify import verify

Equal = Callable[[int], Manifest]
LABEL = {"label": 0}


@pytest.fixture
def folder(equal: Equal, tmp_path: Path) -> Path:
    return Path(shutil.copytree(equal(0).root, tmp_path / "data" / "train"))


def swap(folder: Path, first: str = "shard-000000.tar", second: str = "shard-000002.tar") -> None:
    (folder / first).rename(folder / "x")
    (folder / second).rename(folder / first)
    (folder / "x").rename(folder / second)


def test_two_swapped_shards_of_one_length_end_training_with_their_name(folder: Path) -> None:
    swap(folder)
    manifest = Manifest.load(folder)  # by their lengths, all is well
    with pytest.raises(OwnError, match=r"train/shard-00000[02]\.tar does not hold sample \d+ as .*another file"):
        epoch(manifest)


def test_two_swapped_tars_of_others_of_one_length_end_training_with_their_name(tmp_path: Path) -> None:
    """Nobody knows what their members should be called, but how long they are the index knows."""
    for number in range(2):
        write_tar(
            tmp_path / f"{number}.tar", [file for i in range(4) for file in sample(f"{i}", 4 * number + i, LABEL)]
        )
    tars = [tmp_path / "0.tar", tmp_path / "1.tar"]
    assert tars[0].stat().st_size == tars[1].stat().st_size
    manifest = index(places.find([*map(str, tars)]), tmp_path)
    sound = in_order(manifest)
    assert sound.valid.all()
    swap(tmp_path, "0.tar", "1.tar")
    with pytest.raises(OwnError, match=r"/0\.tar does not hold sample 0 as samples.npy says: damaged, or another file"):
        in_order(Manifest.load(tmp_path))
    assert any("its SHA-256 is not" in line for line in verify(tmp_path).differences)


def test_two_swapped_shards_of_other_lengths_are_refused_on_opening(copied: Manifest) -> None:
    first, second = copied.shards[0], copied.shards[-1]
    assert first.bytes != second.bytes
    swap(copied.root, first.name, second.name)
    with pytest.raises(InputError, match=f"{first.name} has {second.bytes:,} bytes, {first.bytes:,} in the manifest"):
        Manifest.load(copied.root)


def test_two_swapped_shards_are_reported_by_verify(folder: Path) -> None:
    swap(folder)
    text = "\n".join(verify(folder).differences)
    assert "shard-000000.tar: expected sample 000000000, found 000000180.cls" in text
    assert "shard-000002.tar: expected sample 000000180, found 000000000.cls" in text


def test_two_swapped_shards_on_a_server_are_refused_on_arrival(folder: Path, tmp_path: Path, hurried: None) -> None:
    swap(folder)
    with serving(folder) as server:
        manifest = Manifest.load(server.url, Cache(tmp_path / "cache", seconds=5))
        with pytest.raises(OwnError, match=r"shard-00000[02]\.tar: its SHA-256 is .*copy the shards there again"):
            epoch(manifest)
        assert not [*(tmp_path / "cache").rglob("*shard-00000[02].tar")]


def test_a_shard_of_another_build_is_refused_on_arrival(
    equal: Equal, folder: Path, tmp_path: Path, hurried: None
) -> None:
    other = equal(1)
    assert other.shards[1].bytes == equal(0).shards[1].bytes
    shutil.copy(other.shard_path(1), folder)
    with serving(folder) as server:
        manifest = Manifest.load(server.url, Cache(tmp_path / "cache", seconds=5))
        words = f"shard-000001.tar: its SHA-256 is {other.shards[1].sha256}, the manifest says"
        with pytest.raises(OwnError, match=words):
            epoch(manifest)


def test_a_shard_of_another_build_is_reported_by_verify(equal: Equal, folder: Path) -> None:
    shutil.copy(equal(1).shard_path(1), folder)
    text = "\n".join(verify(folder).differences)
    assert "shard-000001.tar: its SHA-256 is not the manifest's" in text
    assert "has label b'" in text


def test_a_shard_of_another_build_ends_training_though_all_images_have_one_size(equal: Equal, folder: Path) -> None:
    shutil.copy(equal(1).shard_path(1), folder)
    with pytest.raises(OwnError, match=r"shard-000001.tar does not hold sample \d+ as samples.npy says"):
        epoch(Manifest.load(folder))


def test_a_shard_of_another_build_of_photographs_ends_training_with_its_name(
    copied: Manifest, raw: Path, tmp_path: Path
) -> None:
    other = build(find("imagefolder")(raw, None), tmp_path / "other", seed=1, samples_per_shard=25, workers=1)
    assert other.shards[1].bytes == copied.shards[1].bytes  # tars end at multiples of 10,240 bytes
    shutil.copy(other.shard_path(1), copied.root)
    with pytest.raises(OwnError, match=r"shard-000001\.tar does not hold sample \d+ as samples.npy says"):
        epoch(Manifest.load(copied.root))


def test_one_name_in_train_and_val_behind_one_cache(equal: Equal, tmp_path: Path) -> None:
    sets = {"train": equal(0), "val": equal(1)}
    for name, built in sets.items():
        shutil.copytree(built.root, tmp_path / "data" / name)
    cache = Cache(tmp_path / "cache")
    fetched = {name: Manifest.load(tmp_path / "data" / name, cache) for name in sets}
    for number in range(4):  # in turns
        for name, built in sets.items():
            assert fetched[name].shards[number].name == built.shards[number].name
            assert fetched[name].shard_path(number).read_bytes() == built.shard_path(number).read_bytes()
    for name, built in sets.items():
        assert same([in_order(fetched[name])], [in_order(built)])
    assert len([*cache.root.rglob("*.tar")]) == 8


def test_a_stale_cached_file_is_not_taken_for_the_new_build(equal: Equal, tmp_path: Path) -> None:
    """Another build at the same address: names and lengths of its shards are those of the one before."""
    place, cache = tmp_path / "train", Cache(tmp_path / "cache")
    shutil.copytree(equal(0).root, place)
    with serving(tmp_path) as server:
        before = Manifest.load(f"{server.url}/train", cache)
        assert same(epoch(before), epoch(equal(0)))
        shutil.rmtree(place)
        shutil.copytree(equal(1).root, place)
        after = Manifest.load(f"{server.url}/train", cache)
        assert [(s.name, s.bytes) for s in after.shards] == [(s.name, s.bytes) for s in before.shards]
        assert same(epoch(after), epoch(equal(1)))
        assert same(epoch(before), epoch(equal(0)))


def test_a_cached_file_that_became_another_shard_ends_training(equal: Equal, tmp_path: Path) -> None:
    with serving(equal(0).root) as server:
        manifest = Manifest.load(server.url, Cache(tmp_path))
        shutil.copy(equal(0).shard_path(1), manifest.shard_path(0))
        with pytest.raises(OwnError, match=r"/shard-000000.tar does not hold .*; remove /.* it will be fetched again"):
            epoch(manifest)
