"""Shards from a real server: what arrives is used only if it is what the manifest says, whatever the server does."""

import argparse
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import server as web
from server import Server, serving

from shards import commands, store
from shards.cache import Cache, abandon, claim
from shards.errors import InputError, OwnError
from shards.manifest import Manifest


@pytest.fixture
def served(copied: Path) -> Iterator[Server]:
    """A copy of the dataset as `train` on a server."""
    with serving(copied.parent) as server:
        copied.rename(copied.with_name("train"))
        yield server


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.store._FIRST_WAIT", 0.1)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", seconds=5)


def load(server: Server, cache: Cache) -> Manifest:
    return Manifest.load(f"{server.url}/train", cache)


def all_files(cache: Cache) -> list[str]:
    return sorted(path.name for path in cache.root.rglob("*") if path.is_file())


def test_a_url_is_the_folder_it_serves(built: Manifest, served: Server, cache: Cache) -> None:
    manifest = load(served, cache)
    assert manifest.fingerprint == built.fingerprint
    assert np.array_equal(manifest.table, built.table)
    assert list(manifest.keys()) == list(built.keys())
    assert manifest.place == f"{served.url}/train"
    assert not any(name.endswith(".tar") for name in served.asked)  # shards come when they are needed
    for index in range(len(built.shards)):
        assert manifest.shard_path(index).read_bytes() == built.shard_path(index).read_bytes()
    load(served, cache).shard_path(0)
    assert served.asked.pop("train/manifest.json") == 2  # always anew
    assert set(served.asked.values()) == {1}
    assert len(served.asked) == 2 + len(built.shards)
    assert not [name for name in all_files(cache) if name.endswith(".part")]


def test_the_address_may_name_the_manifest_and_end_with_a_slash(served: Server, cache: Cache) -> None:
    places = {Manifest.load(f"{served.url}/train{end}", cache).shard_path(0) for end in ("", "/", "/manifest.json")}
    assert len(places) == 1


def test_equal_names_of_two_folders_and_two_builds_stay_apart(served: Server, cache: Cache, built: Manifest) -> None:
    root = served.folder
    shutil.copytree(root / "train", root / "val")
    swapped = root / "val"
    # Another build: its first shard has the second one's content.
    text = (swapped / "manifest.json").read_text()
    first, second = built.shards[:2]
    for old, new in ((first, second), (second, first)):
        shutil.copy(built.root / new.name, swapped / old.name)
    text = text.replace(first.sha256, "X").replace(second.sha256, first.sha256).replace("X", second.sha256)
    text = text.replace(f'"bytes": {first.bytes}', '"bytes": X').replace(f'"bytes": {second.bytes}', '"bytes": Y')
    text = text.replace("X", str(second.bytes)).replace("Y", str(first.bytes))
    (swapped / "manifest.json").write_text(text)
    train, val = load(served, cache), Manifest.load(f"{served.url}/val", cache)
    assert train.shards[0].name == val.shards[0].name
    assert train.shard_path(0).read_bytes() == built.shard_path(0).read_bytes()
    assert val.shard_path(0).read_bytes() == built.shard_path(1).read_bytes()
    # The same address gets the other build: what is cached of the first is not taken for it.
    shutil.rmtree(root / "train")
    swapped.rename(root / "train")
    assert load(served, cache).shard_path(0).read_bytes() == built.shard_path(1).read_bytes()
    assert train.shard_path(0).read_bytes() == built.shard_path(0).read_bytes()


PASSING = [
    web.status(500),
    web.status(503),
    web.status(429),
    web.page,
    web.short,
    web.truncated,
    web.flipped,
    web.longer,
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: fault.__name__)
def test_what_passes_is_tried_again(built: Manifest, served: Server, cache: Cache, fault: web.Fault) -> None:
    manifest, name = load(served, cache), f"train/{built.shards[2].name}"
    served.faults[name] = [fault, fault]
    began = time.monotonic()
    assert manifest.shard_path(2).read_bytes() == built.shard_path(2).read_bytes()
    assert served.asked[name] == 3
    assert time.monotonic() - began > 0.15  # 0.05 .. 0.1 s, then 0.1 .. 0.2 s


def test_a_stall_is_cut_off_and_tried_again(built: Manifest, served: Server, cache: Cache) -> None:
    manifest, name = load(served, cache), f"train/{built.shards[0].name}"
    served.faults[name] = [web.stalls(30)]
    began = time.monotonic()
    assert manifest.shard_path(0).read_bytes() == built.shard_path(0).read_bytes()
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("fault", [web.page, web.truncated, web.flipped], ids=lambda fault: fault.__name__)
def test_what_never_fits_is_refused_with_both_digests(
    built: Manifest, served: Server, cache: Cache, fault: web.Fault
) -> None:
    manifest, shard = load(served, cache), built.shards[1]
    served.always[f"train/{shard.name}"] = fault
    with pytest.raises(OwnError) as caught:
        manifest.shard_path(1)
    text = str(caught.value)
    assert "\n" not in text
    assert f"{served.url}/train/{shard.name}: " in text
    digests = [word for word in text.replace(",", " ").replace(";", " ").split() if len(word) == 64]
    assert len(set(digests)) == 2
    assert digests[1] == shard.sha256
    assert "copy the shards there again" in text
    assert served.asked[f"train/{shard.name}"] == 4
    assert not any(shard.name in name for name in all_files(cache))


@pytest.mark.parametrize("number", [404, 403, 401, 410])
def test_what_does_not_pass_is_not_tried_again(built: Manifest, served: Server, cache: Cache, number: int) -> None:
    manifest, name = load(served, cache), built.shards[0].name
    served.always[f"train/{name}"] = web.status(number)
    with pytest.raises(OwnError, match=rf"train/{name}: .*{403 if number == 401 else number}") as caught:
        manifest.shard_path(0)
    assert "; see to the " in str(caught.value)
    assert served.asked[f"train/{name}"] == 1


def test_a_server_that_never_recovers_ends_in_time(built: Manifest, served: Server, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", seconds=2)
    manifest, name = load(served, cache), built.shards[0].name
    for fault, word in ((web.status(500), "status 500"), (web.trickles, "")):
        served.always[f"train/{name}"] = fault
        began = time.monotonic()
        with pytest.raises(OwnError, match=rf"train/{name}: .*{word}.*; gave up after .* data.fetch_timeout"):
            manifest.shard_path(0)
        assert time.monotonic() - began < 30  # not the five minutes that are the default


def test_a_server_that_comes_back_is_waited_for(
    built: Manifest, served: Server, cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, port, folder = load(served, cache), served.server_address[1], served.folder
    served.shutdown()
    served.server_close()
    back = threading.Event()

    def come_back() -> None:
        time.sleep(1.5)
        with serving(folder, port):
            back.wait(10)

    thread = threading.Thread(target=come_back)
    thread.start()
    try:
        assert manifest.shard_path(0).read_bytes() == built.shard_path(0).read_bytes()
    finally:
        back.set()
        thread.join()
    (line,) = capsys.readouterr().err.splitlines()
    assert f"train/{built.shards[0].name}: " in line
    assert "trying again for" in line


def test_a_server_that_is_gone_for_good(served: Server, tmp_path: Path, built: Manifest) -> None:
    cache = Cache(tmp_path / "cache", seconds=1)
    manifest = load(served, cache)
    served.shutdown()
    served.server_close()
    for call in (lambda: manifest.shard_path(0), lambda: load(served, cache)):
        with pytest.raises(InputError, match=r"127.0.0.1.*; gave up after .* data.fetch_timeout"):
            call()


class Clock(SimpleNamespace):
    """Moves on where the store sleeps, and calls `at` then; nobody waits."""

    def __init__(self, at: Callable[[float], None] = lambda now: None) -> None:
        super().__init__(now=1000.0, monotonic=lambda: self.now, at=at)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.at(self.now)


def test_another_process_is_waited_for_no_longer_than_for_the_file(
    built: Manifest, served: Server, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, shard, clock = load(served, cache), built.shards[0], Clock()
    assert manifest.store is not None
    path = manifest.store.path(shard.name, shard.sha256)
    part = claim(path)
    assert part is not None
    monkeypatch.setattr(store, "time", clock)
    with pytest.raises(OwnError, match=rf"train/{shard.name}: another process did not have it within 5 s: .*_timeout"):
        manifest.shard_path(0)
    assert 1005 <= clock.now < 1006
    assert not served.asked[f"train/{shard.name}"]
    abandon(part, path)
    assert manifest.shard_path(0).read_bytes() == built.shard_path(0).read_bytes()


def test_the_time_that_was_waited_for_another_process_counts(
    built: Manifest,
    served: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It lets go after 200 s of 300, and the server never answers."""
    manifest, shard = load(served, Cache(tmp_path / "cache", seconds=300)), built.shards[0]
    assert manifest.store is not None
    path = manifest.store.path(shard.name, shard.sha256)
    held = [claim(path)]

    def let_go(now: float) -> None:
        if held and now >= 1200:
            part = held.pop()
            assert part is not None
            abandon(part, path)

    clock = Clock(let_go)
    monkeypatch.setattr(store, "time", clock)
    served.always[f"train/{shard.name}"] = web.status(500)
    with pytest.raises(OwnError, match=rf"{shard.name}: .*status 500; gave up after \d+ tries in \d+ s"):
        manifest.shard_path(0)
    assert "trying again for 100 s" in capsys.readouterr().err
    assert clock.now <= 1300


def test_the_manifest_itself_is_looked_at(served: Server, cache: Cache) -> None:
    with pytest.raises(InputError, match=r"/val/manifest.json: it is not there \(404\)"):
        Manifest.load(f"{served.url}/val", cache)
    served.always["train/manifest.json"] = web.page
    with pytest.raises(InputError, match="train/manifest.json: damaged, no JSON"):
        load(served, cache)


def test_a_damaged_table_is_refused(served: Server, cache: Cache) -> None:
    served.always["train/samples.npy"] = web.flipped
    with pytest.raises(InputError, match=r"samples\.npy: its SHA-256 is"):
        load(served, cache)


def test_inspect_and_verify_look_at_a_url(
    served: Server, built: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    parser = argparse.ArgumentParser()
    commands.register(parser.add_subparsers())
    url = f"{served.url}/train?sig=s3cr3t"
    args = parser.parse_args(["inspect", url, "--sheet", str(tmp_path / "sheet.png"), "--images", "4"])
    assert args.run(args) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{served.url}/train: 60 images, 3 classes")
    assert "s3cr3t" not in out
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    args = parser.parse_args(["verify", url])
    assert args.run(args) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"{served.url}/train: every byte is as the manifest says"
    assert "s3cr3t" not in out
