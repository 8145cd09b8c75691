"""`alasca index` into a folder that holds something already."""

import os
from pathlib import Path

import pytest
from indexes import alasca, fails, indexed
from rawsmall import sample, write_tar

from shards.errors import InputError
from shards.manifest import Manifest
from shards.verify import verify


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


def test_a_full_disk_is_said_in_one_line(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    fails(r"--out .*index: No space left on device; mend this", tars, "--out", tmp_path / "index")
    monkeypatch.undo()
    indexed(tmp_path / "index", tars)
