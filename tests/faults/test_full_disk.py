"""A disk that is full, a real one: a small file system in memory, mounted where the tests may do that."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from epochs import LANES, epoch, feed, order, same
from server import serving

from pipeline.data import ahead
from pipeline.data.ahead import Ahead
from shards.build import build
from shards.cache import Cache
from shards.errors import InputError, OwnError
from shards.manifest import Manifest
from shards.readers import find
from shards.url import folder_name
from shards.verify import verify

Disk = Callable[[int], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Mounts so many bytes; asked again, makes them more or fewer."""
    place = tmp_path / "disk"

    def mounted(size: int) -> Path:
        options = ["-o", f"size={size}" + (",remount" if place.is_dir() else "")]
        place.mkdir(exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", *options, "tmpfs", place], capture_output=True, text=True, check=False
        )
        if done.returncode:
            place.rmdir()
            pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
        return place

    if shutil.which("mount") is None:
        pytest.skip("no mount here")
    yield mounted
    if place.is_dir():
        subprocess.run(["umount", "--lazy", place], check=True, timeout=20)


def room(place: Path) -> int:
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize


def table_bytes(manifest: Manifest) -> int:
    return sum(file.bytes for file in manifest.files.values()) + (manifest.root / "manifest.json").stat().st_size


def test_a_full_disk_makes_room_in_our_own_cache_and_goes_on(photos: Manifest, disk: Disk) -> None:
    """data.cache_gb promises more than the disk has."""
    shard = photos.shards[0].bytes
    place = disk(table_bytes(photos) + 3 * shard + 40_000)
    with serving(photos.root) as server:
        manifest = Manifest.load(server.url, Cache(place, seconds=10))
        for _ in range(2):
            assert same(epoch(manifest), epoch(photos))
    assert max(server.asked[shard.name] for shard in photos.shards) > 1  # not all fitted
    assert not [*place.rglob("*.part")]


def test_a_full_disk_is_not_filled_ahead_of_need(photos: Manifest, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fetched ahead must leave the worker the room that it made."""
    monkeypatch.setattr(ahead, "_LOOK", 0.01)
    monkeypatch.setattr(ahead, "_PAUSE", 0.02)
    place = disk(table_bytes(photos) + 3 * photos.shards[0].bytes + 40_000)
    killed = place / folder_name("http://x") / f"{'0' * 64}-shard-000000.tar.part"
    with serving(photos.root) as server:
        server.delay = 0.01
        manifest = Manifest.load(server.url, Cache(place, seconds=10))
        killed.parent.mkdir()
        killed.write_bytes(bytes(photos.shards[0].bytes))  # of a process that is gone, after the others began
        for _ in range(3):
            with closing(feed(manifest)) as batches:
                plan = order(manifest)
                walk = Ahead(manifest, plan, range(LANES), 0, plan.steps_per_epoch, 1)
                found = []
                for number, batch in enumerate(batches):
                    walk.reached(number // LANES)
                    found.append(batch)
                walk.close()
            assert same(found, epoch(photos))
    assert not killed.exists()


def test_a_disk_full_of_other_things_is_one_clear_line(photos: Manifest, disk: Disk) -> None:
    place = disk(4 << 20)
    with serving(photos.root) as server:
        manifest = Manifest.load(server.url, Cache(place, seconds=10))
        kept = manifest.file_path("samples.npy")
        (place / "other").write_bytes(bytes(room(place) - 30_000))
        name = r"shard-\d{6}\.tar"
        with pytest.raises(
            OwnError, match=rf"the cache {place} has no room for {server.url}/{name} \(No space left on device\): free"
        ):
            epoch(manifest)
        assert kept.exists()  # small files beside the shards would free nothing
        assert not [*place.rglob("*.part")] and not [*place.rglob("*.tar")]
        (place / "other").unlink()
        assert same(epoch(manifest), epoch(photos))


def test_a_disk_too_small_to_verify_is_one_line_that_names_it(
    photos: Manifest, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is fetched to be verified passes through TMPDIR, not through the cache."""
    place = disk(table_bytes(photos) + 20_000)
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)  # or the one it found before would do
    with serving(photos.root) as server:
        with pytest.raises(OwnError) as caught:
            verify(server.url)
        assert re.search(rf" {place}/\S+ has no room for {server.url}/shard-\d{{6}}\.tar \(No space", str(caught.value))
        assert str(caught.value).endswith(": free some, or set TMPDIR to another disk")
        assert not [*place.iterdir()]
        disk(20 << 20)
        assert verify(server.url).differences == ()


def test_a_full_disk_closes_a_shard_of_ones_own_before_it_is_an_error(photos: Manifest, disk: Disk) -> None:
    place = disk(table_bytes(photos) + photos.shards[0].bytes + 40_000)
    with serving(photos.root) as server:
        manifest = Manifest.load(server.url, Cache(place, seconds=10))
        held = [manifest.open_shard(0)]

        def release() -> bool:
            for descriptor in held:
                os.close(descriptor)
            return bool(held) and not held.clear()

        held.append(manifest.open_shard(1, release))
        assert os.pread(held[0], 1 << 20, 0) == photos.shard_path(1).read_bytes()
        with pytest.raises(OwnError, match="No space left on device"):
            manifest.open_shard(2)
        release()


def test_a_disk_full_while_sharding_is_one_line_and_the_build_goes_on(raw: Path, photos: Manifest, disk: Disk) -> None:
    place = disk(3 * photos.shards[0].bytes)
    source = find("imagefolder")(raw, None)
    with pytest.raises(InputError, match=rf"{place}/train: No space left on device; mend this and run the same again"):
        build(source, place / "train", samples_per_shard=25, workers=1)
    assert not (place / "train" / "manifest.json").exists()
    disk(20 << 20)
    build(source, place / "train", samples_per_shard=25, workers=1)
    assert verify(place / "train").differences == ()
