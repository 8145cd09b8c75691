"""Tars that mean harm: names that lead out of them, links and devices, and members that are programs."""

import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset
from epochs import in_order
from rawsmall import jpeg, write_tar

from pipeline.cli import main
from shards.errors import InputError
from shards.manifest import Manifest
from shards.readers import csv, imagefolder, lists
from shards.verify import verify

Said = Callable[[], str]


def shard(folder: Path) -> int:
    """The exit status of sharding the tars in `folder`/raw, as a user does it."""
    words = ["shard", "webdataset", "--root", str(folder / "raw"), "--out", str(folder / "out"), "--workers", "1"]
    return main(words)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """The one line of the error."""

    def line() -> str:
        (text,) = capsys.readouterr().err.splitlines()
        return text

    return line


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("key", ["../x", "/tmp/x", "a/../../x", "..", "a/..", "./../x", "x\n../y"])
def test_a_key_that_leads_out_of_the_folder_is_refused(tmp_path: Path, said: Said, key: str) -> None:
    write_tar(tmp_path / "raw/0.tar", [(f"{key}.jpg", jpeg(0)), (f"{key}.cls", b"0")])
    if key in ("..", "a/.."):  # then it is a name that begins with dots, and belongs to no sample
        assert shard(tmp_path) == 2
        assert "no sample in its 1 tars" in said()
    else:
        assert shard(tmp_path) == 2
        assert f"0.tar: {key + '.jpg'!r} is no name inside the tar" in said()
    assert everything(tmp_path) == {"raw", "raw/0.tar"}


def test_a_key_that_leads_out_of_the_folder_is_refused_in_lists(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("../x.jpg,0\n")
    (tmp_path / "list.txt").write_text("../x.jpg 0\n")
    with pytest.raises(InputError, match=r"line 1: '../x.jpg' leads out of --root"):
        csv.read(tmp_path, None, str(tmp_path / "list.csv"))
    with pytest.raises(InputError, match=r"line 1: '../x.jpg' leads out of the folder"):
        list(lists.entries(tmp_path / "list.txt", 1))


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE],
    ids=["symbolic_link", "hard_link", "character_device", "block_device", "fifo", "sparse"],
)
def test_link_and_device_members_are_refused(tmp_path: Path, said: Said, kind: bytes) -> None:
    (tmp_path / "raw").mkdir()
    with tarfile.open(tmp_path / "raw/a.tar", "w") as archive:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    assert shard(tmp_path) == 2
    assert "a.tar: 'a.jpg' is neither a plain file nor a folder; write the tar without it" in said()
    assert everything(tmp_path) == {"raw", "raw/a.tar"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_link_or_device_in_a_shard_of_ours_is_told_by_verify_and_never_followed(
    copied: Manifest, photos: Manifest, kind: bytes
) -> None:
    path, row = copied.shard_path(0), photos.table[3]
    data = bytearray(path.read_bytes())
    header = slice(int(row["offset"]) - 512, int(row["offset"]))
    info = tarfile.TarInfo.frombuf(bytes(data[header]), "utf-8", "strict")
    info.type, info.linkname = kind, "/etc/passwd"
    data[header] = info.tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes(data)
    assert any("is no regular file" in line for line in verify(copied.root).differences)
    assert in_order(copied).images.equal(in_order(photos).images)  # read at its place, as bytes


@pytest.mark.timeout(20)
def test_a_pipe_or_folder_among_the_tars_is_named_and_not_waited_for(tmp_path: Path, said: Said) -> None:
    write_tar(tmp_path / "raw/0.tar", [("a.jpg", jpeg(0)), ("a.cls", b"0")])
    os.mkfifo(tmp_path / "raw/1.tar")
    assert shard(tmp_path) == 2
    assert "raw/1.tar: not a file; remove it" in said()
    (tmp_path / "raw/1.tar").unlink()
    (tmp_path / "raw/1.tar").mkdir()
    assert shard(tmp_path) == 2
    assert "raw/1.tar: not a file; remove it" in said()


@pytest.mark.timeout(20)
def test_a_pipe_among_the_images_is_named_and_not_waited_for(tmp_path: Path) -> None:
    from shards.build import build

    (tmp_path / "raw/cat").mkdir(parents=True)
    (tmp_path / "raw/cat/0.jpg").write_bytes(jpeg(0))
    os.mkfifo(tmp_path / "raw/cat/1.jpg")
    with pytest.raises(InputError, match=r"cat/1\.jpg"):
        build(imagefolder.read(tmp_path / "raw", None), tmp_path / "out", workers=1)


class Touch:
    """A pickle of one makes a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("extension", ["pyd", "pth", "pkl", "pickle", "npy", "cls"])
def test_a_member_that_is_a_program_never_runs(
    tmp_path: Path, extension: str, capsys: pytest.CaptureFixture[str]
) -> None:
    owned = tmp_path / "owned"
    program = pickle.dumps(Touch(owned))
    members = [(f"{i}.{name}", data) for i in range(4) for name, data in (("jpg", jpeg(i)), (extension, program))]
    if extension != "cls":
        members = [(f"{i}.{name}", data) for i in range(4) for name, data in (("jpg", jpeg(i)), ("cls", b"0"))]
        members += [(f"{i}.{extension}", program) for i in range(4)]
        members.sort()
    write_tar(tmp_path / "raw/0.tar", members)
    if extension == "pyd":  # it does work, where somebody unpickles what he is given
        pickle.loads(program)
        assert owned.exists()
        owned.unlink()
        list(webdataset.WebDataset(str(tmp_path / "raw/0.tar"), shardshuffle=False).decode("pil"))
        assert owned.exists()
        owned.unlink()
    if extension == "cls":
        assert shard(tmp_path) == 2
        assert "its .cls holds b'" in capsys.readouterr().err
    else:
        assert shard(tmp_path) == 0
        out = str(tmp_path / "out")
        assert main(["verify", out]) == 0
        assert main(["inspect", out, "--sheet", str(tmp_path / "sheet.png")]) == 0
        assert in_order(Manifest.load(out)).valid.all()
    assert not owned.exists()


def test_a_program_slipped_into_a_shard_of_ours_is_told_by_verify_and_never_runs(
    copied: Manifest, tmp_path: Path
) -> None:
    owned, shard = tmp_path / "owned", copied.shard_path(0)
    for name in ("x.pyd", "x.pth"):
        (tmp_path / name).write_bytes(pickle.dumps(Touch(owned)))
        with tarfile.open(shard, "a", format=tarfile.USTAR_FORMAT) as archive:
            archive.add(tmp_path / name, name)
    text = "\n".join(verify(copied.root).differences)
    assert f"{shard.name}: its SHA-256 is not the manifest's" in text
    assert "found x.pyd" in text
    assert shard.stat().st_size == copied.shards[0].bytes  # there was room before the end
    assert in_order(copied).valid.all()
    assert not owned.exists()
