"""An output folder that holds a finished dataset: this one, another, or a damaged one."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from shards import noise
from shards.build import build
from shards.errors import InputError
from shards.localfolder import LocalFolder
from shards.manifest import Manifest
from shards.plan import Plan
from shards.progress import Progress
from shards.readers import digits, imagefolder

Contents = Callable[[Path], dict[str, bytes]]


def again(raw: Path, out: Path, **changes: object) -> Manifest:
    """Build what the fixture `built` holds, but for `changes`."""
    options = {"seed": 3, "noise": noise.parse("symmetric:0.3"), "samples_per_shard": 7, "workers": 1}
    return build(imagefolder.read(raw, None), out, **(options | changes))


def test_a_finished_folder_is_left_alone(raw: Path, copied: Path) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in copied.iterdir()}
    said: list[str] = []

    class Heard(Progress):
        def say(self, line: str) -> None:
            said.append(line)

    manifest = again(raw, copied, progress=Heard())
    assert manifest.num_samples == 60
    assert {file.name: file.stat().st_mtime_ns for file in copied.iterdir()} == before
    assert len(said) == 1
    assert "nothing to do" in said[0]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("shard-000002.tar", None, "shard-000002.tar is missing"),
        ("samples.npy", lambda data: data[:-1], "samples.npy has "),
        ("manifest.json", lambda data: data[:-9], "damaged, no JSON can be read"),
        ("manifest.json", lambda data: b"[" * 100_000, "damaged, no JSON can be read"),
        ("manifest.json", lambda data: data.replace(b'"schema": 1', b'"schema": 9'), "schema 9, but"),
        ("manifest.json", lambda data: data.replace(b'"kind"', b'"kin"'), "no build writes"),
    ],
)
def test_a_damaged_dataset_is_to_be_removed(
    raw: Path, copied: Path, name: str, change: Callable[[bytes], bytes] | None, words: str
) -> None:
    file = copied / name
    if change is None:
        file.unlink()
    else:
        assert change(file.read_bytes()) != file.read_bytes()
        file.write_bytes(change(file.read_bytes()))
    with pytest.raises(InputError) as caught:
        again(raw, copied)
    message = str(caught.value)
    assert message.startswith(f"--out {copied}: holds a dataset that cannot be used (") and words in message
    assert message.endswith("); remove that folder and run the same again, or name another --out")
    assert "\n" not in message and message.count("again") == 1 + (words == "schema 9, but")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 4}, "seed 3 there, 4 asked"),
        ({"noise": None}, "noise symmetric:0.3 there, None asked"),
        ({"resize": 16}, "resize None there, 16 asked"),
        ({"samples_per_shard": 8}, "samples_per_shard 7 there, 8 asked"),
    ],
)
def test_another_build_in_the_folder_is_named(
    raw: Path, copied: Path, changes: dict[str, object], words: str, contents: Contents
) -> None:
    before = contents(copied)
    with pytest.raises(InputError, match=words):
        again(raw, copied, **changes)
    assert contents(copied) == before


def test_other_images_in_the_folder_are_named(raw: Path, copied: Path, tmp_path: Path) -> None:
    fewer = shutil.copytree(raw, tmp_path / "fewer")
    next(fewer.rglob("*.png")).unlink()
    with pytest.raises(InputError, match="its images, their sizes or their labels differ"):
        again(fewer, copied)
    (fewer / "bird").rename(fewer / "birds")
    with pytest.raises(InputError, match="its classes differ"):
        again(fewer, copied)
    with pytest.raises(InputError, match="reader imagefolder there, digits asked"):
        build(digits.read(None, None), copied, workers=1)


def test_a_dataset_that_another_job_finished_meanwhile_is_left_alone(
    raw: Path, built: Manifest, tmp_path: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is published between the moment in which a build looks and the moment in which it holds the lock."""
    out, with_noise = tmp_path / "out", Plan.with_noise

    def slow(plan: Plan, *arguments: object) -> Plan:
        monkeypatch.setattr(Plan, "with_noise", with_noise)
        again(raw, out)
        return with_noise(plan, *arguments)

    monkeypatch.setattr(Plan, "with_noise", slow)
    assert again(raw, out).fingerprint == built.fingerprint
    assert contents(out) == contents(built.root)


def test_a_folder_in_which_files_come_and_go_is_seen_whole(tmp_path: Path) -> None:
    """A job that renames its temporary files must not make another one think that there is nothing."""
    for number in range(200):
        (tmp_path / f"{number}.json").write_bytes(b"x")
    stop = threading.Event()

    def rename() -> None:
        while not stop.is_set():
            (tmp_path / "a.tmp").write_bytes(b"x")
            (tmp_path / "a.tmp").rename(tmp_path / "a.json")

    thread = threading.Thread(target=rename)
    thread.start()
    try:
        assert all(len(LocalFolder(tmp_path).entries()) >= 200 for _ in range(300))
    finally:
        stop.set()
        thread.join()
