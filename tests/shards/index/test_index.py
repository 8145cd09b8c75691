"""`alasca index`: a manifest for tars that somebody else wrote."""

import hashlib
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from indexes import alasca, fails, indexed, pictures, sorted_tars
from rawsmall import jpeg, sample, write_tar

from shards.cache import Cache
from shards.errors import InputError
from shards.manifest import Manifest, canonical
from shards.readers import webdataset
from shards.verify import verify


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


def test_our_own_manifests_are_what_they_were(built: Manifest) -> None:
    """Shards that lie beside the manifest say nothing of a place: the bytes and the fingerprint of builds stay."""
    document = json.loads((built.root / "manifest.json").read_text())
    assert [list(shard) for shard in document["shards"]] == [["name", "samples", "bytes", "sha256"]] * 9
    assert built.fingerprint == hashlib.sha256(canonical(document)).hexdigest()
