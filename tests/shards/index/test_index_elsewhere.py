"""`alasca index` of tars at a server, and an index that lies there itself."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import server as web
from indexes import fails, indexed, pictures
from rawsmall import sample, write_tar
from server import Server, status

from shards import commands, places
from shards.cache import Cache
from shards.errors import InputError, OwnError
from shards.index import index
from shards.manifest import Manifest
from shards.progress import Bar, Lines, Progress
from shards.verify import verify


def test_tars_at_a_server_are_fetched_once_and_not_kept(
    served: Server, tars: Path, tmp_path: Path, cache: Cache
) -> None:
    local = indexed(tmp_path / "local", tars)
    manifest = indexed(tmp_path / "index", f"{served.url}/tars/{{00000..00001}}.tar", cache=cache)
    assert manifest.fingerprint == local.fingerprint
    assert [shard.place for shard in manifest.shards] == [f"{served.url}/tars"] * 2
    assert dict(served.asked) == {"tars/00000.tar": 1, "tars/00001.tar": 1}
    assert not [path for path in cache.root.rglob("*") if path.is_file()]

    again = Manifest.load(tmp_path / "index", cache)
    assert pictures(again) == pictures(local)
    assert pictures(pickle.loads(pickle.dumps(again))) == pictures(local)
    assert set(served.asked.values()) == {2}  # the second time for the cache, which keeps them
    assert verify(tmp_path / "local").differences == ()


def test_an_index_that_lies_elsewhere_itself(served: Server, tars: Path, tmp_path: Path, cache: Cache) -> None:
    local = indexed(tars.parent / "index", tars)
    manifest = Manifest.load(f"{served.url}/index?sig=s3cr3t", cache)
    assert manifest.fingerprint == local.fingerprint
    assert pictures(manifest) == pictures(local)
    assert pictures(pickle.loads(pickle.dumps(manifest))) == pictures(local)
    (tars / "link").symlink_to(tars.parent / "index")
    for folder in (tars.parent / "index", tars / "link"):
        behind = Manifest.load(folder, cache)  # a given cache stands before local folders too
        assert behind.store_of(0) is not None
        assert behind.shard_path(0).is_relative_to(cache.root)
        assert pictures(behind) == pictures(local) == pictures(Manifest.load(folder))


@pytest.mark.parametrize(
    "place", ["../../../etc", "/etc", "file:///etc", "pipe:cat", "http://me:pw@h/x", "http://h/x?k=s"]
)
def test_a_manifest_from_elsewhere_names_no_files_of_ours(served: Server, tars: Path, cache: Cache, place: str) -> None:
    indexed(tars.parent / "index", tars)
    file = tars.parent / "index/manifest.json"
    file.write_text(file.read_text().replace('"../tars"', json.dumps(place)))
    with pytest.raises(InputError, match=r"manifest\.json: .*(place|pipe)"):
        Manifest.load(f"{served.url}/index", cache)


def test_a_tar_that_changed_at_the_server_is_refused(
    served: Server, tars: Path, tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexed(tmp_path / "index", f"{served.url}/tars/{{00000..00001}}.tar", cache=cache)
    data = bytearray((tars / "00001.tar").read_bytes())
    data[700] ^= 1
    (tars / "00001.tar").write_bytes(data)
    with pytest.raises(OwnError, match=rf"{served.url}/tars/00001\.tar: its SHA-256 is"):
        Manifest.load(tmp_path / "index", cache).open_shard(1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.root))
    assert any("00001.tar: its SHA-256" in line for line in verify(tmp_path / "index").differences)


def test_damaged_and_missing_tars_are_named_and_nothing_is_written(
    served: Server, tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "index"
    whole = (tars / "00001.tar").read_bytes()
    damaged = bytearray(whole)
    damaged[512 + 1024] ^= 1
    (tars / "00001.tar").write_bytes(damaged)
    fails(r"tars/00001\.tar: bad header at byte [\d,]+", tars, "--out", out)
    fails(rf"^{served.url}/tars/00001\.tar: bad header at byte", f"{served.url}/tars/00001.tar", "--out", out)
    (tars / "00001.tar").write_bytes(whole)
    served.always["tars/00000.tar"] = lambda handler, content: web.whole(handler, content[:5000])
    fails(
        rf"^{served.url}/tars/00000\.tar: damaged or no plain tar .*; fetch it again",
        f"{served.url}/tars/00000.tar",
        "--out",
        out,
    )
    served.always["tars/00000.tar"] = web.page
    fails(rf"^{served.url}/tars/00000\.tar: damaged or no plain tar", f"{served.url}/tars/00000.tar", "--out", out)
    served.always["tars/00000.tar"] = status(404)
    fails(r"tars/00000\.tar: it is not there \(404\)", f"{served.url}/tars/{{00000..00001}}.tar", "--out", out)
    assert not out.exists()


def test_a_server_that_stumbles_is_asked_again(served: Server, tmp_path: Path, cache: Cache) -> None:
    served.faults["tars/00000.tar"] = [status(503), status(500)]
    manifest = indexed(tmp_path / "index", f"{served.url}/tars/00000.tar", cache=cache)
    assert (manifest.num_samples, served.asked["tars/00000.tar"]) == (6, 3)


@pytest.mark.parametrize("shown", [Lines(first=1e-9, every=0.0), Bar()], ids=["lines", "bar"])
def test_a_long_transfer_shows_its_bytes(
    served: Server, tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shown: Progress
) -> None:
    """One tar of 8 MB, nearly all of it a file of no sample."""
    write_tar(tars / "00000.tar", [*sample("a", 0, {"label": 0}), ("README", bytes(8 << 20))])
    cache = Cache(tmp_path / "cache", seconds=60)
    index(places.find([f"{served.url}/tars/00000.tar"]), tmp_path / "index", cache=cache, progress=shown)
    told = capsys.readouterr().err
    megabytes = [float(figure) for figure in re.findall(r"([\d.]+) MB received", told)]
    assert megabytes and megabytes == sorted(megabytes)
    if isinstance(shown, Lines):
        assert len(megabytes) > 1
        assert megabytes[-1] == round((tars / "00000.tar").stat().st_size / 1e6, 1)
        assert len(re.findall(r"^0 of 1 tars, [\d.]+ MB received, [\d.]+ MB/s$", told, re.MULTILINE)) == len(megabytes)


def test_ctrl_c_ends_it_at_once_and_the_next_one_tidies_up(served: Server, tmp_path: Path, cache: Cache) -> None:
    served.always["tars/00001.tar"] = web.stalls(60)
    place, environment = f"{served.url}/tars/{{00000..00001}}.tar", os.environ | {"XDG_CACHE_HOME": str(tmp_path / "c")}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "index", place, "--out", str(tmp_path / "index")],
        env=environment,
        cwd=Path(commands.__file__).parents[1],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 60
        while not list((tmp_path / "c").rglob("00001.tar-*.part")):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[1].splitlines()[-1] == "alasca: interrupted"
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert not (tmp_path / "index").exists()
    del served.always["tars/00001.tar"]
    left = Cache(tmp_path / "c/alasca", seconds=5)
    indexed(tmp_path / "index", place, cache=left)
    assert not [path for path in left.root.rglob("*") if path.is_file()]
