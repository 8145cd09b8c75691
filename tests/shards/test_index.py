"""`alasca index`: a manifest for tars that somebody else wrote."""

import argparse
import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import server as web
from rawsmall import jpeg, make_tars, sample, write_tar
from server import Server, serving, status

from pipeline.data.reader import ShardReader
from shards import commands, places
from shards.build import build
from shards.cache import Cache
from shards.errors import InputError, OwnError
from shards.index import index
from shards.manifest import Manifest, canonical
from shards.readers import webdataset
from shards.verify import verify


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shards.store._FIRST_WAIT", 0.05)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", seconds=3)


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    make_tars(tmp_path / "tree/tars")
    return tmp_path / "tree/tars"


@pytest.fixture
def served(tars: Path) -> Iterator[Server]:
    with serving(tars.parent) as server:
        yield server


def alasca(*arguments: object) -> int:
    parser = argparse.ArgumentParser(prog="alasca")
    commands.register(parser.add_subparsers(required=True))
    args = parser.parse_args([str(argument) for argument in arguments])
    status: int = args.run(args)
    return status


def indexed(out: Path, *given: object, cache: Cache | None = None, **options: str) -> Manifest:
    found = places.find([str(place) for place in given])
    return index(found, out, cache=cache, **options)


def pictures(manifest: Manifest) -> list[bytes]:
    reader = ShardReader(manifest)
    try:
        return [reader.image_bytes(i) for i in range(manifest.num_samples)]
    finally:
        reader.close()


def fails(words: str, *arguments: object) -> None:
    with pytest.raises(InputError, match=words) as caught:
        alasca("index", *arguments)
    assert "\n" not in str(caught.value)


def sorted_tars(root: Path, tars: int = 4, each: int = 20) -> Path:
    for tar in range(tars):
        files = [file for i in range(each) for file in sample(f"{tar}-{i}", 100 * tar + i, {"label": tar})]
        write_tar(root / f"part-{tar:03d}.tar", files)
    return root


def test_an_index_is_what_the_reader_reads_where_it_lies(tars: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tars.iterdir()}
    out = tmp_path / "tree/index"
    manifest = indexed(out, tars, label_field="label", clean_field="truth")
    source = webdataset.read(tars, None, "label", "truth")
    assert manifest.classes == source.classes
    assert list(manifest.keys()) == [record.key for record in source.records]
    assert manifest.labels.tolist() == [record.label for record in source.records]
    assert manifest.clean_labels.tolist() == [record.clean_label for record in source.records]
    assert pictures(manifest) == [jpeg(10 * tar + i) for tar in range(2) for i in range(6)]
    assert set(manifest.table["width"].tolist()) == {24}
    assert sorted(path.name for path in out.iterdir()) == ["keys.bin", "manifest.json", "samples.npy"]
    assert {path: path.read_bytes() for path in tars.iterdir()} == before
    assert [shard.place for shard in manifest.shards] == ["../tars"] * 2
    assert manifest.source["options"] == {"label_field": "label", "clean_field": "truth"}
    assert str(tmp_path) not in (out / "manifest.json").read_text()
    assert verify(out).differences == ()


def test_the_same_in_the_folder_of_the_tars_and_after_a_move(tars: Path, tmp_path: Path) -> None:
    apart = indexed(tmp_path / "tree/index", tars)
    beside = indexed(tars, tars)
    assert "place" not in (tars / "manifest.json").read_text()
    assert beside.fingerprint == apart.fingerprint
    assert verify(tars).differences == ()
    shutil.move(tmp_path / "tree", tmp_path / "moved")
    for folder in ("tars", "index"):
        moved = Manifest.load(tmp_path / "moved" / folder)
        assert moved.fingerprint == apart.fingerprint
        assert pictures(moved)[7] == jpeg(11)
    os.rename(tmp_path / "moved/tars", tmp_path / "moved/other")
    with pytest.raises(InputError, match=r"\.\./tars/00000\.tar is missing"):
        Manifest.load(tmp_path / "moved/index")


def test_two_tars_of_one_name(tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("val", 50)):
        files = [file for i in range(3) for file in sample(f"{i}", seed + i, {"label": i})]
        write_tar(tmp_path / split / "000.tar", files)
    manifest = indexed(tmp_path / "both", tmp_path / "train", tmp_path / "val/000.tar")
    assert pictures(manifest) == [jpeg(seed) for seed in (0, 1, 2, 50, 51, 52)]
    assert manifest.key(0) == "train/000.tar/0.jpg"
    assert len(set(manifest.keys())) == 6
    assert verify(tmp_path / "both").differences == ()


def test_far_folders_are_named_whole(tmp_path: Path, tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "commonpath", lambda paths: "/")  # as of /data and /home
    assert indexed(tmp_path / "index", tars).shards[0].place == str(tars)
    monkeypatch.undo()
    shutil.move(tmp_path / "index", tmp_path / "moved")
    assert pictures(Manifest.load(tmp_path / "moved"))[0] == jpeg(0)
    behind = Manifest.load(tmp_path / "moved", Cache(tmp_path / "cache", seconds=3))
    assert behind.store_of(0) is not None
    assert pictures(behind)[0] == jpeg(0)


def test_keys_that_others_use_are_kept_in_place_and_order(tmp_path: Path) -> None:
    """img2dataset: .jpg, .json, .txt, and files beside the tars; the image need not come first, nor next."""
    fields = [json.dumps({"key": f"{i:09d}", "status": "success", "label": "ox" if i else "ant"}) for i in range(3)]
    files = [(f"{i:09d}.json", fields[i].encode()) for i in range(3)]
    files += [(f"{i:09d}.jpg", jpeg(i)) for i in (2, 0, 1)] + [("000000000.txt", b"a"), ("README", b"x")]
    write_tar(tmp_path / "t/00000.tar", files, tarfile.PAX_FORMAT)
    (tmp_path / "t/00000.parquet").write_bytes(b"PAR1")
    (tmp_path / "t/00000_stats.json").write_text("{}")
    manifest = indexed(tmp_path / "t", tmp_path / "t", label_field="label")
    assert list(manifest.keys()) == [f"00000.tar/{i:09d}.jpg" for i in (2, 0, 1)]
    assert manifest.labels.tolist() == [1, 0, 1]
    assert manifest.source["counts"]["passed_over"] == 1
    assert verify(tmp_path / "t").differences == ()


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


def test_verify_names_what_differs(tars: Path, tmp_path: Path) -> None:
    manifest = indexed(tmp_path / "tree/index", tars)
    table = np.load(tmp_path / "tree/index/samples.npy")
    table["offset"][3] += 512
    np.save(tmp_path / "tree/index/samples.npy", table)
    data = bytearray((tars / "00001.tar").read_bytes())
    data[600] ^= 1  # a pixel
    (tars / "00001.tar").write_bytes(data)
    found = verify(tmp_path / "tree/index").differences
    start = int(manifest.table["offset"][3])
    assert "samples.npy: its SHA-256 is not the manifest's" in found
    assert f"../tars/00000.tar: 1 samples do not lie where the table says, first at {start:,}" in found
    assert "../tars/00001.tar: its SHA-256 is not the manifest's" in found
    assert len(found) == 3
    (tars / "00001.tar").unlink()
    assert "../tars/00001.tar is missing" in verify(tmp_path / "tree/index").differences


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


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([("a.jpg", b"x")], r"a\.tar: sample 'a' has no \.cls"),
        ([("a.cls", b"0")], r"a\.tar: sample 'a' has no image"),
        ([("a.jpg", b"x"), ("a.cls", b"-1")], r"a\.tar/a\.jpg: label -1"),
        ([("../a.jpg", b"x"), ("../a.cls", b"0")], "'../a.jpg' is no name inside"),
        ([("README", b"x")], "no sample in 1 tar, first .*a.tar"),
        ([], "no sample in 1 tar"),
    ],
)
def test_samples_that_are_not_whole(tmp_path: Path, files: list[tuple[str, bytes]], words: str) -> None:
    write_tar(tmp_path / "t/a.tar", files)
    fails(words, tmp_path / "t", "--out", tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_links_are_refused_and_long_names_are_not(tmp_path: Path) -> None:
    long = "folder/" * 20 + "x" * 60
    write_tar(tmp_path / "t/gnu.tar", sample(long, 0, {"label": 0}), tarfile.GNU_FORMAT)
    write_tar(tmp_path / "t/pax.tar", sample("ü" + long, 1, {"label": 1}), tarfile.PAX_FORMAT)
    write_tar(tmp_path / "t/ustar.tar", sample("folder/" * 14 + "x" * 60, 2, {"label": 0}), tarfile.USTAR_FORMAT)
    manifest = indexed(tmp_path / "index", tmp_path / "t")
    assert pictures(manifest) == [jpeg(0), jpeg(1), jpeg(2)]
    assert manifest.key(1) == f"pax.tar/ü{long}.jpg"
    assert verify(tmp_path / "index").differences == ()
    with tarfile.open(tmp_path / "t/link.tar", "w") as archive:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    fails(r"link\.tar: 'a\.jpg' is neither a plain file nor a folder", tmp_path / "t", "--out", tmp_path / "other")


def test_images_that_cannot_be_read_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "t/a.tar", [*sample("a", 0, {"label": 0}), ("b.jpg", b"no image"), ("b.cls", b"0")])
    assert alasca("index", tmp_path / "t", "--out", tmp_path / "index") == 0
    assert "WARNING  1 image cannot be read; kept as they are" in capsys.readouterr().out
    manifest = Manifest.load(tmp_path / "index")
    assert manifest.table["width"].tolist() == [24, 0]
    assert manifest.source["unreadable"][0]["key"] == "a.tar/b.jpg"


def test_a_tar_without_samples_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sorted_tars(tmp_path / "t", 2, 2)
    write_tar(tmp_path / "t/part-009.tar", [])
    for text in ("left out 1 tar without a sample (part-009.tar)", "nothing to do"):
        assert alasca("index", tmp_path / "t", "--out", tmp_path / "t") == 0
        assert text in capsys.readouterr().err
    assert verify(tmp_path / "t").differences == ()


def test_one_tar_under_two_names_is_refused(tmp_path: Path) -> None:
    sorted_tars(tmp_path / "t", 2, 2)
    shutil.copy(tmp_path / "t/part-000.tar", tmp_path / "t/part-002.tar")
    fails(r"part-002\.tar: holds the very bytes of .*part-000\.tar; index one", tmp_path / "t", "--out", tmp_path / "i")


def test_what_a_folder_holds_already(tars: Path, built: Manifest, copied: Path, tmp_path: Path) -> None:
    fails(r"holds another dataset; name another folder", tars, "--out", copied)
    fails(r"the manifest is written to a local folder", tars, "--out", "s3://bucket/index")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").touch()
    fails(r"holds other files \(notes\.txt\)", tars, "--out", tmp_path / "full")
    fails(r"holds other tars too \(00001\.tar\)", tars / "00000.tar", "--out", tars)
    (tmp_path / "begun/.build").mkdir(parents=True)
    (tmp_path / "begun/.build/plan.json").touch()
    fails("holds an unfinished build", tars, "--out", tmp_path / "begun")
    assert Manifest.load(copied).fingerprint == built.fingerprint


def test_the_same_again_and_another(tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tree/index"
    assert alasca("index", tars, "--out", out) == 0
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    capsys.readouterr()
    assert alasca("index", tars, "--out", out) == 0
    assert "holds this very index already; nothing to do" in capsys.readouterr().err
    fails("holds an index of other tars", tars / "00000.tar", "--out", out)
    fails("holds another index, with other split", tars, "--out", out, "--split", "val")
    fails("holds another index, with other options", tars, "--out", out, "--label-field", "label")
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\n")
    fails("holds another index, with other classes", tars, "--out", out, "--classes", names)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()} == before
    write_tar(tars / "00000.tar", sample("a", 0, {"label": 2}))
    fails(r"with other content of the tars and options; name another folder", tars, "--out", out)


def test_a_killed_index_starts_again(tars: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    (out / ".build").mkdir(parents=True)
    for name in ("samples.npy", "keys.bin", ".build/manifest.json.1.tmp"):
        (out / name).write_bytes(b"half")
    with pytest.raises(InputError, match=r"half-finished; run its `alasca shard` or `alasca index` again"):
        Manifest.load(out)
    indexed(out, tars)
    assert sorted(os.listdir(out)) == ["keys.bin", "manifest.json", "samples.npy"]
    assert verify(out).differences == ()


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


def test_a_full_disk_is_said_in_one_line(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    fails(r"--out .*index: No space left on device; mend this", tars, "--out", tmp_path / "index")
    monkeypatch.undo()
    indexed(tmp_path / "index", tars)


def test_sorted_tars_are_told_with_figures_and_a_command_that_mends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = sorted_tars(tmp_path / "so rted")
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\ndog\n")
    assert alasca("index", root, "--out", root, "--classes", names) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING")]
    assert len(told) == 2
    assert re.search(
        r"of 8 lanes, .*lane 0 has other classes than the whole in 75\.0% of its samples"
        r" \(in a fair shuffle \d\d\.\d%\); 100\.0% of it are 'ant', 25\.0% of the whole",
        told[0],
    )
    command = told[1].partition(": ")[2]
    shuffled = f"{root}-shuffled"
    assert command == (f"alasca shard webdataset --root '{root}' --split train --classes {names} --out '{shuffled}'")
    webdataset_source = webdataset.read(root, "train", classes=str(names))
    build(webdataset_source, shuffled, workers=1, samples_per_shard=20)
    capsys.readouterr()
    assert alasca("inspect", shuffled) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("of 8 lanes"))
    worst, fair = (float(figure) for figure in re.findall(r"([\d.]+)%", line))
    assert worst < 1.5 * fair
    assert alasca("index", root / "part-000.tar", "--out", tmp_path / "one") == 0
    assert "WARNING" not in capsys.readouterr().out  # of one class, lanes cannot differ


def test_the_remedy_for_tars_that_lie_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sorted_tars(tmp_path / "t")
    with serving(tmp_path / "t") as server:
        arguments = ("--label-field", "label", "--split", "test", "--out", tmp_path / "index")
        assert alasca("index", f"{server.url}/part-{{000..003}}.tar", *arguments) == 0
    told = capsys.readouterr().out.splitlines()[1]
    assert told.endswith(
        "copy these tars into a local folder TARS, then alasca shard webdataset --root TARS --split test"
        f" --label-field label --out {tmp_path}/index-shuffled"
    )


def test_shuffled_tars_are_not_warned_about(
    built: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Our own shards are such tars, too."""
    assert alasca("index", built.root, "--out", tmp_path / "index") == 0
    printed = capsys.readouterr()
    assert "WARNING" not in printed.out
    again = Manifest.load(tmp_path / "index")
    assert again.labels.tolist() == built.labels.tolist()
    assert pictures(again) == pictures(built)
    assert alasca("inspect", tmp_path / "index", "--sheet", tmp_path / "sheet.png") == 0
    assert f"shards in  {os.path.relpath(built.root, tmp_path / 'index')}" in capsys.readouterr().out
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_our_own_manifests_are_what_they_were(built: Manifest) -> None:
    """Shards that lie beside the manifest say nothing of a place: the bytes and the fingerprint of builds stay."""
    document = json.loads((built.root / "manifest.json").read_text())
    assert [list(shard) for shard in document["shards"]] == [["name", "samples", "bytes", "sha256"]] * 9
    assert built.fingerprint == hashlib.sha256(canonical(document)).hexdigest()
