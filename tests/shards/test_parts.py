"""A build in parts by many jobs, merged: the bytes of a build by one."""

import errno
import fcntl
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from pipeline.cli import main
from shards import noise, worker
from shards.build import build, build_part
from shards.errors import InputError
from shards.localfolder import LocalFolder
from shards.manifest import Manifest
from shards.merge import merge
from shards.part import Part
from shards.progress import Progress
from shards.readers import imagefolder

Contents = Callable[[Path], dict[str, bytes]]
OPTIONS = {"seed": 3, "noise": noise.parse("symmetric:0.3"), "samples_per_shard": 7, "workers": 1}


class Heard(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.images = 0

    def start(self, total: int, unit: str) -> None:
        self.images = total if unit == "images" else self.images

    def say(self, line: str) -> None:
        self.said.append(line)


def part(raw: Path, out: Path, text: str, **changes: object) -> Heard:
    heard = Heard()
    assert build_part(imagefolder.read(raw, None), out, Part.parse(text), **(OPTIONS | changes), progress=heard)
    return heard


@pytest.fixture
def halves(raw: Path, tmp_path: Path) -> list[Path]:
    folders = [tmp_path / "first", tmp_path / "second"]
    for number, folder in enumerate(folders, 1):
        part(raw, folder, f"{number}/2")
    return folders


@pytest.mark.parametrize("of", [1, 4, 12])
def test_parts_in_one_folder_are_the_whole(
    raw: Path, built: Manifest, tmp_path: Path, contents: Contents, of: int
) -> None:
    """9 shards: of 12 parts, three have none. All jobs run at once."""
    with ThreadPoolExecutor(4) as jobs:
        list(jobs.map(lambda number: part(raw, tmp_path / "out", f"{number}/{of}"), range(of, 0, -1)))
    manifest = merge([tmp_path / "out"])
    assert manifest.fingerprint == built.fingerprint
    assert contents(tmp_path / "out") == contents(built.root)


def test_parts_in_many_folders_are_the_whole(halves: list[Path], built: Manifest, contents: Contents) -> None:
    before = contents(halves[1])
    merge(halves)
    assert contents(halves[0]) == contents(built.root)
    assert contents(halves[1]) == before
    heard = Heard()
    assert merge(halves, heard).fingerprint == built.fingerprint
    (said,) = heard.said
    assert said == f"{halves[0]}: is finished already; nothing to do"
    with pytest.raises(InputError, match="named twice"):
        merge([halves[1], halves[1]])


def test_parts_that_are_not_those_of_a_finished_dataset_are_refused(
    raw: Path, halves: list[Path], tmp_path: Path, contents: Contents, capsys: pytest.CaptureFixture[str]
) -> None:
    merge(halves)
    part(raw, tmp_path / "other", "2/2", seed=4)
    before = contents(halves[0])
    for folder, words in (
        (
            tmp_path / "other",
            "its shards (shard-000001.tar, shard-000003.tar, shard-000005.tar, shard-000007.tar) are no",
        ),
        (tmp_path / "nowhere", "holds no parts"),
    ):
        assert main(["merge", *map(str, halves), str(folder)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"alasca: {folder}: {words}")
    assert contents(halves[0]) == before
    (halves[0] / "shard-000002.tar").unlink()
    with pytest.raises(InputError, match=r"first: shard-000002\.tar is missing; build it again or copy it again"):
        merge(halves)


def test_parts_of_other_numbers_and_a_build_in_one_job_go_on_with_what_is_there(
    raw: Path, built: Manifest, tmp_path: Path, contents: Contents
) -> None:
    out = tmp_path / "out"
    assert part(raw, out, "1/2").images == 5 * 7 - 3  # the last shard holds 4
    assert part(raw, out, "2/3").images == 3 * 7 - 7 * 1  # of shards 1, 4, 7, number 4 is there
    heard = Heard()
    build(imagefolder.read(raw, None), out, **OPTIONS, progress=heard)
    assert heard.said == [f"{out}: continuing; 7 of 9 shards are there"]
    assert contents(out) == contents(built.root)


def test_a_missing_part_is_named_and_nothing_is_published(
    raw: Path, built: Manifest, tmp_path: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole, opened = tmp_path / "out", worker.open_writer, []

    def failing(file: IO[bytes]) -> object:
        opened.append(file)
        if len(opened) == 2:  # of part 3
            raise OSError(errno.EIO, "Input/output error")
        return whole(file)

    part(raw, out, "1/4")
    monkeypatch.setattr(worker, "open_writer", failing)
    with pytest.raises(InputError, match="Input/output error; mend this and run the same again"):
        part(raw, out, "3/4")
    assert list(out.glob(".build/*.tmp")) == []
    before = contents(out)
    with pytest.raises(InputError) as caught:
        merge([out])
    assert str(caught.value) == (
        f"{out}: 5 of 9 shards are not there (shard-000001.tar, shard-000003.tar, shard-000005.tar, shard-000006.tar,"
        " shard-000007.tar): part 2/4, 3/4, 4/4; run those commands to the end, then merge again"
    )
    with pytest.raises(InputError, match=f"{out}: holds parts of a build; `alasca merge` them"):
        Manifest.load(out)
    assert contents(out) == before
    for text in ("2/4", "3/4", "4/4"):
        part(raw, out, text)
    merge([out])
    assert contents(out) == contents(built.root)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 4}, "seed 4 there, 3 asked"),
        ({"noise": None}, "noise None there, symmetric:0.3 asked"),
        ({"resize": 16}, "resize 16 there, None asked"),
    ],
)
def test_parts_of_other_builds_are_refused(
    raw: Path, tmp_path: Path, contents: Contents, changes: dict[str, object], words: str
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    part(raw, first, "1/2")
    part(raw, second, "2/2", **changes)
    before = [file for file in contents(tmp_path).items() if "lock" not in file[0]]
    with pytest.raises(InputError, match=rf"second: holds parts of another build than {first} \({words}\)"):
        merge([first, second])
    with pytest.raises(InputError, match="another, unfinished build"):
        part(raw, first, "2/2", **changes)
    assert [file for file in contents(tmp_path).items() if "lock" not in file[0]] == before


def test_other_raw_files_make_other_parts_only(raw: Path, built: Manifest, tmp_path: Path, contents: Contents) -> None:
    """Times differ between copies of a raw dataset on two nodes: no reason to refuse."""
    out, copy = tmp_path / "out", tmp_path / "copy"
    shutil.copytree(raw, copy, copy_function=shutil.copyfile)
    part(raw, out, "1/2")
    part(copy, out, "2/2")
    heard = part(copy, out, "1/2")
    assert heard.said == [f"{out}: the raw files changed since the build stopped; starting again"]
    assert heard.images == 5 * 7 - 3
    merge([out])
    assert contents(out) == contents(built.root)


def test_a_merge_that_was_stopped_goes_on(
    halves: list[Path], built: Manifest, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, copied = LocalFolder.put, []

    def failing(self: LocalFolder, file: IO[bytes], name: str) -> None:
        copied.append(name)
        if len(copied) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, file, name)

    monkeypatch.setattr(LocalFolder, "put", failing)
    with pytest.raises(InputError, match="No space left on device; mend this and run the same again"):
        merge(halves)
    merge(halves)
    assert copied == [f"shard-{i:06d}.tar" for i in (1, 3, 5, 5, 7)]
    assert contents(halves[0]) == contents(built.root)


def test_a_shard_that_was_damaged_is_not_merged(halves: list[Path], contents: Contents) -> None:
    file = halves[1] / "shard-000003.tar"
    data = bytearray(file.read_bytes())
    data[700] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match=f"{file}: changed since it was written"):
        merge(halves)
    assert "manifest.json" not in contents(halves[0])


@pytest.mark.parametrize("name", ["outline.json", "outline.npy", "outline.keys"])
@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: b"[1]"])
def test_a_damaged_outline_is_refused(halves: list[Path], name: str, damage: Callable[[bytes], bytes]) -> None:
    file = halves[0] / ".build" / name
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match=f"{halves[0]}: what its parts left in .build is damaged"):
        merge(halves)


def test_one_job_of_a_part_at_a_time_and_none_beside_the_whole(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    part(raw, out, "1/2")
    for name, how in (("lock", fcntl.LOCK_EX), ("lock-2-of-2", fcntl.LOCK_EX)):
        with open(out / ".build" / name, "a+") as lock:
            fcntl.flock(lock, how)
            with pytest.raises(InputError, match="another build is writing there"):
                part(raw, out, "2/2")
    part(raw, out, "2/2")
    with open(out / ".build/lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        for start in (lambda: merge([out]), lambda: build(imagefolder.read(raw, None), out, **OPTIONS)):
            with pytest.raises(InputError, match="another build is writing there"):
                start()
    merge([out])


def test_what_holds_no_parts_is_named(built: Manifest, halves: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for places, words in (
        ([tmp_path / "empty"], "empty: holds no parts"),
        ([tmp_path / "nowhere"], "nowhere: holds no parts"),
        ([halves[0], built.root], "a finished dataset; name folders"),
    ):
        with pytest.raises(InputError, match=words):
            merge(places)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/", "a/b", "1/0", "-1/2", ""])
def test_a_part_is_one_of_n(text: str) -> None:
    with pytest.raises(InputError, match=f"--part {text}: must be I/N with I from 1 to N"):
        Part.parse(text)


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    command = ["shard", "digits", "--samples-per-shard", "500", "--workers", "1", "--out", out]
    for number in (1, 2):
        assert main([*command, "--part", f"{number}/2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" is there")[0] for line in said] == [f"{out}: part 1/2", f"{out}: part 2/2"]
    assert said[0].endswith(f"; when all 2 are there: alasca merge {out}")
    assert main(["merge", out]) == 0
    assert capsys.readouterr().out == f"{out}: 1,437 images, 10 classes, 3 shards, 3.0 MB, no noise added\n"
    assert main([*command, "--part", "1/2"]) == 0
    assert "merge" not in capsys.readouterr().out
    assert main(["merge", str(tmp_path / "none")]) == 2
    assert main([*command, "--part", "3/2"]) == 2
