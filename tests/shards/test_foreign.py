"""Tars that somebody else wrote, read by the reader `webdataset`."""

import io
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from rawsmall import jpeg, make_tars, sample, write_tar

from shards.build import build
from shards.errors import InputError
from shards.readers import webdataset
from shards.readers.record import Slice, Source, content
from shards.tar import open_writer
from shards.verify import verify

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def fails(words: str, call: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def rows(source: Source) -> dict[str, tuple[int, int]]:
    return {record.key: (record.label, record.clean_label) for record in source.records}


def tar(folder: Path, files: Mapping[str, bytes], format: int = tarfile.GNU_FORMAT) -> Path:
    write_tar(folder / "0.tar", list(files.items()), format)
    return folder


def test_records_point_into_the_tars(tmp_path: Path) -> None:
    make_tars(tmp_path / "raw")
    source = webdataset.read(tmp_path / "raw", None)
    assert (source.split, source.classes, len(source.records)) == ("train", ("0", "1", "2"), 12)
    for number, record in enumerate(source.records):
        seed = 10 * (number // 6) + number % 6
        assert record.key == f"{number // 6:05d}.tar/part/{number % 6:05d}.jpg"
        assert (record.extension, record.label, record.clean_label) == ("jpg", number % 6 % 3, -1)
        assert isinstance(record.content, Slice)
        assert content(record, source.root) == jpeg(seed)


def test_builds_shuffled_shards_with_the_very_bytes(tmp_path: Path) -> None:
    make_tars(tmp_path / "raw")
    source = webdataset.read(tmp_path / "raw", "train", "label", "truth")
    manifest = build(source, tmp_path / "out", samples_per_shard=5, workers=1)
    assert verify(tmp_path / "out").differences == ()
    keys = [manifest.key(i) for i in range(12)]
    assert sorted(keys) == [record.key for record in source.records] != keys
    for i, row in enumerate(manifest.table):
        number, index = int(keys[i][:5]), int(keys[i][-9:-4])
        with open(manifest.shard_path(row["shard"]), "rb") as file:
            file.seek(row["offset"])
            assert file.read(row["size"]) == jpeg(10 * number + index)
        assert manifest.labels[i] == index % 3
        assert manifest.clean_labels[i] == ((index + number) % 3 if index % 2 else -1)
    assert manifest.source["options"] == {"label_field": "label", "clean_field": "truth"}
    assert np.all(manifest.table["width"] == 24)


def test_a_tar_that_vanishes_or_shrinks_is_noticed(tmp_path: Path) -> None:
    make_tars(tmp_path / "raw")
    source = webdataset.read(tmp_path / "raw", None)
    (tmp_path / "raw/00001.tar").rename(tmp_path / "away")
    fails(
        r"6 of 12 images are missing \(00001\.tar/part/00000\.jpg", lambda: build(source, tmp_path / "out", workers=1)
    )
    (tmp_path / "raw/00001.tar").write_bytes((tmp_path / "away").read_bytes()[:3000])
    fails(r"00001\.tar/part/.* changed while it was read", lambda: build(source, tmp_path / "out", workers=1))


@pytest.mark.parametrize("format", FORMATS)
def test_what_python_writes(tmp_path: Path, format: str) -> None:
    long = "folder/" * 20 + "x" * 60 if format != "ustar" else "folder/" * 9 + "x" * 60
    accents = "ünïcode" if format != "ustar" else "plain"
    path = tmp_path / "raw/a.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w", format=FORMATS[format], pax_headers={"comment": "global"}) as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for key, label in ((long, 1), (accents, 0)):
            for name, data in sample(key, label, {"label": label}):
                info = tarfile.TarInfo(name)
                info.size, info.mtime = len(data), 1.5  # PAX keeps the fraction in a header of its own
                archive.addfile(info, io.BytesIO(data))
    source = webdataset.read(tmp_path / "raw", None)
    assert rows(source) == {f"a.tar/{long}.jpg": (1, -1), f"a.tar/{accents}.jpg": (0, -1)}
    assert {content(record, source.root) for record in source.records} == {jpeg(0), jpeg(1)}


def test_what_webdataset_writes(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with open(tmp_path / "raw/a.tar", "wb") as file, open_writer(file) as writer:
        for i in range(3):
            writer.write(
                {"__key__": f"d.x/{i}", "JPEG": jpeg(i), "seg.png": b"mask", "cls": b"%d" % (2 - i), "txt": b"."}
            )
    source = webdataset.read(tmp_path / "raw", None)
    assert rows(source) == {f"a.tar/d.x/{i}.JPEG": (2 - i, -1) for i in range(3)}
    assert [content(record, source.root) for record in source.records] == [jpeg(i) for i in range(3)]


def test_labels_from_json_and_class_names(tmp_path: Path) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("ox\ncat\n")
    root = tar(
        tmp_path / "raw",
        {
            "a.jpg": b"1",
            "a.json": b'{"kind": "cat", "true": "ox"}',
            "b.png": b"2",
            "b.json": b'{"kind": "ox", "true": null}',
            "c.webp": b"3",
            "c.json": b'{"kind": 1, "true": -1}',
        },
    )
    source = webdataset.read(root, None, "kind", "true", str(names))
    assert source.classes == ("ox", "cat")
    assert rows(source) == {"0.tar/a.jpg": (1, 0), "0.tar/b.png": (0, -1), "0.tar/c.webp": (1, -1)}
    fails("--clean-field truth: no .json", lambda: webdataset.read(root, None, "kind", "truth", str(names)))
    fails("sample 'a': its .json has no label in 'label'", lambda: webdataset.read(root, None, "label"))
    fails("sample 'a' has no .cls .*--label-field", lambda: webdataset.read(root, None))
    names.write_text("ox\ndog\n")
    fails("0.tar/a.jpg: label 'cat' is none of the 2", lambda: webdataset.read(root, None, "kind", None, str(names)))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.cls": b"0"}, "sample 'a' has no image"),
        ({"a.jpg": b"x", "a.png": b"x", "a.cls": b"0"}, "sample 'a' has 2 images"),
        ({"a.jpg": b"x"}, "sample 'a' has no .cls"),
        ({"a.jpg": b"x", "a.cls": b""}, "its .cls holds b'', not one label"),
        ({"a.jpg": b"x", "a.cls": b"\x80\x04K\x01."}, "its .cls holds"),
        ({"a.jpg": b"x", "a.cls": b"-1"}, "label -1"),
        ({"/a.jpg": b"x", "a.cls": b"0"}, "'/a.jpg' is no name inside"),
        ({"../a.jpg": b"x", "../a.cls": b"0"}, "'../a.jpg' is no name inside"),
        ({"README": b"x"}, "no sample in its 1 tars"),
    ],
)
def test_samples_that_are_not_whole(tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    root = tar(tmp_path / "raw", files)
    fails(words, lambda: webdataset.read(root, None))


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"{", "is damaged"),
        (b"[1]", "no object"),
        (b'{"x": 1.5}', "1.5; a label"),
        (b'{"x": true}', "True"),
        (b"[" * 10**5, "damaged"),
    ],
)
def test_damaged_json(tmp_path: Path, document: bytes, words: str) -> None:
    root = tar(tmp_path / "raw", {"a.jpg": b"x", "a.json": document})
    fails(rf"sample 'a': .*{words}", lambda: webdataset.read(root, None, "x"))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE]
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    (tmp_path / "raw").mkdir()
    with tarfile.open(tmp_path / "raw/a.tar", "w") as archive:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    fails("'a.jpg' is neither a plain file nor a folder", lambda: webdataset.read(tmp_path / "raw", None))


def test_a_negative_size_is_no_endless_loop(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.jpg", b"x" * 600), ("a.cls", b"0")])
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[124:136] = b"\xff" * 10 + b"\xfc\x00"  # -1024, in GNU's binary notation
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (tmp_path / "a.tar").write_bytes(data)
    fails("bad header of 'a.jpg', negative size", lambda: webdataset.read(tmp_path, None))


def test_a_member_there_twice(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.jpg", b"1"), ("a.cls", b"0"), ("a.JPG", b"2")])
    fails("'a.JPG' is there twice", lambda: webdataset.read(tmp_path, None))


@pytest.mark.parametrize("format", FORMATS)
def test_no_damaged_header_loses_a_sample(tmp_path: Path, format: str) -> None:
    """tarfile takes a header that does not add up for the end of the tar."""
    files = [file for i in range(4) for file in sample(f"{i}", i, {"label": 0})]
    write_tar(tmp_path / "a.tar", files, FORMATS[format])
    whole = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        headers = [info.offset for info in archive]
    for position in (*headers, headers[5] + 150, headers[7] + 257 + 90):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        (tmp_path / "a.tar").write_bytes(damaged)
        fails(r"a\.tar: (bad header at byte|damaged)", lambda: webdataset.read(tmp_path, None))
    for length in (
        0,
        100,
        headers[3],
        headers[4] + 200,
        headers[6] + 700,
        len(whole.rstrip(b"\0")) + 1,
        headers[-1] + 1024,
    ):
        (tmp_path / "a.tar").write_bytes(whole[:length])
        fails(r"a\.tar: .*(cut short|damaged)", lambda: webdataset.read(tmp_path, None))
    (tmp_path / "a.tar").write_bytes(whole)
    assert len(webdataset.read(tmp_path, None).records) == 4


def test_other_files_are_said_and_other_folders_explained(tmp_path: Path) -> None:
    root = tar(tmp_path / "raw", {"._a.jpg": b"x", "README": b"x", "a.jpg": b"x", "a.cls": b"0"})
    source = webdataset.read(root, None)
    assert source.passed_over == 2
    assert source.notes == ("passed over 2 files that belong to no sample (0.tar/._a.jpg, 0.tar/README)",)
    os.rename(root / "0.tar", root / "0.tar.gz")
    fails("no .tar file in it; unpack .tar.gz", lambda: webdataset.read(root, None))
    fails("--root FOLDER is needed", lambda: webdataset.read(None, None))


def test_splits_are_folders_and_never_mixed(tmp_path: Path) -> None:
    make_tars(tmp_path / "val")
    assert len(webdataset.read(tmp_path, "val").records) == 12
    make_tars(tmp_path / "flat")
    (tmp_path / "flat/00000.tar").rename(tmp_path / "flat/set-train-0.tar")
    (tmp_path / "flat/00001.tar").rename(tmp_path / "flat/set-val-0.tar")
    fails(r"several splits \(train, val\)", lambda: webdataset.read(tmp_path / "flat", "train"))
