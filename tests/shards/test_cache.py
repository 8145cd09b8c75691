"""The cache of fetched shards: shared, bounded, and nothing in it is trusted that was not finished."""

import errno
import fcntl
import os
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import server as web
from server import Server, serving

from shards.cache import Cache, abandon, claim, mark
from shards.errors import InputError, OwnError
from shards.manifest import Manifest
from shards.remote import DiskFailed, calling
from shards.url import folder_name


@pytest.fixture
def served(copied: Path) -> Iterator[Server]:
    with serving(copied) as server:
        yield server


def in_a_process(program: str, *words: str) -> "subprocess.Popen[str]":
    head = """
import os, sys
from pathlib import Path
from shards.cache import Cache
from shards.manifest import Manifest
from shards.url import folder_name
"""
    return subprocess.Popen(
        [sys.executable, "-c", head + program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def tars(cache: Cache) -> list[Path]:
    return sorted(cache.root.glob("*/*.tar"))


def test_two_processes_share_one_download(served: Server, built: Manifest, tmp_path: Path) -> None:
    served.delay = 0.3
    program = """
manifest = Manifest.load(sys.argv[1], Cache(Path(sys.argv[2])))
for index in range(3):
    os.close(manifest.open_shard(index))
print("done")
"""
    both = [in_a_process(program, served.url, str(tmp_path / "cache")) for _ in range(2)]
    assert [process.communicate(timeout=60)[0] for process in both] == ["done\n"] * 2
    assert served.asked.pop("manifest.json") == 2
    assert set(served.asked.values()) == {1}
    assert len(served.asked) == 2 + 3
    assert len(tars(Cache(tmp_path / "cache"))) == 3


def test_who_waits_takes_over_where_the_first_one_dies(served: Server, built: Manifest, tmp_path: Path) -> None:
    name = built.shards[0].name
    served.faults[name] = [web.stalls(20)]
    first = in_a_process(
        "Manifest.load(sys.argv[1], Cache(Path(sys.argv[2]))).shard_path(0)", served.url, str(tmp_path / "cache")
    )
    manifest = Manifest.load(served.url, Cache(tmp_path / "cache"))
    while not served.asked[name]:
        time.sleep(0.02)
    first.kill()
    first.communicate()
    assert manifest.shard_path(0).read_bytes() == built.shard_path(0).read_bytes()


def test_leftovers_are_removed_and_never_trusted(served: Server, built: Manifest, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    first = Manifest.load(served.url, cache)
    path = first.shard_path(0)
    part = path.with_name(path.name + ".part")
    torn, whole = path.read_bytes()[:999], path.read_bytes()
    path.unlink()
    part.write_bytes(torn)
    assert first.shard_path(0).read_bytes() == whole  # a fetch starts from nothing
    part.write_bytes(torn)
    other = part.with_name("0" * 64 + "-x.tar.part")
    other.write_bytes(torn)
    with other.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as if somebody was at it
        Manifest.load(served.url, cache)
        assert not part.exists()
        assert other.exists()
    Manifest.load(served.url, cache)
    assert not other.exists()


def test_a_cached_file_of_another_length_is_fetched_again(served: Server, built: Manifest, tmp_path: Path) -> None:
    manifest = Manifest.load(served.url, Cache(tmp_path / "cache"))
    with manifest.shard_path(0).open("r+b") as file:
        file.truncate(100)
    assert manifest.shard_path(0).read_bytes() == built.shard_path(0).read_bytes()
    assert served.asked[built.shards[0].name] == 2


def test_the_cache_stays_within_its_bound_and_keeps_what_is_read(
    served: Server, built: Manifest, tmp_path: Path
) -> None:
    sizes = [shard.bytes for shard in built.shards]
    table = sum(file.bytes for file in built.files.values())
    cache = Cache(tmp_path / "cache", bytes=table + sum(sizes[:3]) + 100)
    manifest = Manifest.load(served.url, cache)
    mark(manifest.file_path("samples.npy"), time.time() - 3600)
    held = manifest.open_shard(0)
    for index in range(1, len(sizes)):
        os.close(manifest.open_shard(index))
        assert sum(path.stat().st_size for path in cache.root.rglob("*") if path.is_file()) <= cache.bytes
        assert any(built.shards[0].sha256 in path.name for path in tars(cache))
        assert any(built.shards[index].sha256 in path.name for path in tars(cache))
    os.close(held)
    manifest.shard_path(1)
    manifest.file_path("samples.npy")
    assert served.asked["samples.npy"] == 1  # a table makes no room for shards


def test_what_is_needed_last_goes_first(served: Server, built: Manifest, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    manifest = Manifest.load(served.url, cache)
    now = time.time()
    # Needed in an hour; unused for a day; in a minute; used just now.
    for index, moment in enumerate((3600.0, -86400.0, 60.0, 0.0)):
        mark(manifest.shard_path(index), now + moment)
    total = sum(path.stat().st_size for path in cache.root.rglob("*") if path.is_file())
    for gone in ({1}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}):
        Cache(cache.root, bytes=total).make_room(sum(built.shards[i].bytes for i in gone))
        left = {path.name[:64] for path in tars(cache)}
        assert left == {built.shards[i].sha256 for i in set(range(4)) - gone}


def test_what_is_on_its_way_is_counted_whole(served: Server, built: Manifest, tmp_path: Path) -> None:
    """Or all that fetch at once, in threads or processes, would take the one free place."""
    manifest = Manifest.load(served.url, Cache(tmp_path / "cache"))
    for index in range(6):
        manifest.shard_path(index)
    largest = max(shard.bytes for shard in built.shards)
    cache = Cache(tmp_path / "cache", bytes=largest + sum(path.stat().st_size for path in tmp_path.rglob("cache/*/*")))
    assert manifest.store is not None
    paths = [manifest.store.path(shard.name, shard.sha256) for shard in built.shards[6:]]
    claims = [claim(path) for path in paths]  # three, of which no byte has come
    assert cache.make_room(largest)
    assert sum(path.stat().st_size for path in cache.root.glob("*/*")) + 3 * largest <= cache.bytes
    assert 3 <= len(tars(cache)) < 6
    for part, path in zip(claims, paths, strict=True):
        assert part is not None
        abandon(part, path)


def test_a_reader_closes_its_own_before_it_goes_over_the_bound(served: Server, built: Manifest, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", bytes=1)  # nothing fits
    manifest = Manifest.load(served.url, cache)
    held: list[int] = []

    def release() -> bool:
        if held:
            os.close(held.pop())
            return True
        return False

    for index in (0, 1, 0):
        held.append(manifest.open_shard(index, release))
        assert len(held) == 1
        assert os.pread(held[0], 1 << 20, 0) == built.shard_path(index).read_bytes()
        assert len(tars(cache)) == 1
    assert served.asked[built.shards[0].name] == 2
    os.close(held.pop())


def test_a_manifest_reaches_workers_without_another_request(served: Server, built: Manifest, tmp_path: Path) -> None:
    manifest = Manifest.load(served.url, Cache(tmp_path / "cache"))
    before = dict(served.asked)
    again = pickle.loads(pickle.dumps(manifest))
    assert again.fingerprint == built.fingerprint
    assert again.key(7) == built.key(7)
    assert served.asked == before


def test_a_full_cache_is_one_clear_line(served: Server, built: Manifest, tmp_path: Path) -> None:
    manifest = Manifest.load(served.url, Cache(tmp_path / "cache"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OwnError, match=r"has no room for http://\S+: File too large.*|has no room.*File too large"):
            manifest.shard_path(0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not tars(Cache(tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob("*.part"))
    assert served.asked[built.shards[0].name] == 1
    assert manifest.shard_path(0).read_bytes() == built.shard_path(0).read_bytes()


def test_a_cache_that_cannot_be_is_named(served: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/cache cannot be made: Not a directory; set data.cache"):
        Manifest.load(served.url, Cache(tmp_path / "file" / "cache"))


def test_a_cache_before_a_local_folder(copied: Path, built: Manifest, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    manifest = Manifest.load(copied, cache)
    assert manifest.fingerprint == built.fingerprint
    path = manifest.shard_path(2)
    assert path.is_relative_to(cache.root)
    for file in copied.glob("*.tar"):
        file.unlink()
    assert manifest.shard_path(2).read_bytes() == built.shard_path(2).read_bytes()
    with pytest.raises(OwnError, match=f"{built.shards[3].name}: it is not there"):
        manifest.shard_path(3)


def test_what_is_no_dataset_is_told_so_behind_a_cache_too(copied: Path, built: Manifest, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    assert Manifest.load(copied / "manifest.json", cache).shard_path(0).is_relative_to(cache.root)
    (copied / "manifest.json").unlink()
    with pytest.raises(InputError, match="copied: not a shard folder; build one"):
        Manifest.load(copied, cache)
    (copied / ".build").mkdir()
    with pytest.raises(InputError, match="copied: half-finished; run its `alasca shard` or"):
        Manifest.load(copied, cache)
    with pytest.raises(InputError, match="elsewhere: no such folder"):
        Manifest.load(tmp_path / "elsewhere", cache)


def test_any_file_system_of_fsspec_will_do(copied: Path, built: Manifest, tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(copied), "/bucket/train", recursive=True)
    manifest = Manifest.load("memory://bucket/train", Cache(tmp_path / "cache"))
    assert manifest.shard_path(4).read_bytes() == built.shard_path(4).read_bytes()


def test_without_a_folder_urls_are_kept_below_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Cache().root == tmp_path / ".cache" / "alasca"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Cache().root == tmp_path / "xdg" / "alasca"
    assert Cache(Path("~/x")).root == tmp_path / "x"


def test_what_is_not_the_caches_own_is_never_touched(served: Server, tmp_path: Path) -> None:
    """The folder may be one in which people keep other things."""
    root = tmp_path / "scratch"
    for name in ("thesis/chapter.tex", "train/only-copy.tar", "train/download.part", "photos/shard-000000.tar"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"mine" * 100)
        os.utime(root / name, (1, 1))
    cache = Cache(root, 1)
    manifest = Manifest.load(served.url, cache)  # sweeps
    for index in range(len(manifest.shards)):
        manifest.shard_path(index)
    cache.make_room(10**6)
    cache.free(10**6)
    assert sorted(str(path.relative_to(root)) for path in root.glob("*/*") if b"mine" in path.read_bytes()[:4]) == [
        "photos/shard-000000.tar",
        "thesis/chapter.tex",
        "train/download.part",
        "train/only-copy.tar",
    ]
    assert not list(root.glob(f"{folder_name(served.url)}/*.tar"))


def test_a_disk_that_fails_is_not_called_the_servers_fault(
    served: Server, built: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may say so while bytes are written, or only when they are put on the disk."""
    place, name, words = tmp_path / "cache", built.shards[0].name, os.strerror(errno.EIO)

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, words)

    manifest = Manifest.load(served.url, Cache(place))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails)
        with pytest.raises(
            OwnError, match=rf"the cache {place} could not take {served.url}/{name} \({words}\): see to"
        ):
            manifest.shard_path(0)
    assert served.asked[name] == 1  # asking again mends no disk
    assert manifest.shard_path(0).read_bytes() == built.shard_path(0).read_bytes()
    with pytest.raises(DiskFailed, match=words), calling(1.0):
        fails()
