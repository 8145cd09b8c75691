"""A build that writes to a real S3-compatible server on loopback."""

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from bucket import BUCKET, Bucket, serving

from shards import noise, remotefolder, worker
from shards.build import build, build_part
from shards.errors import InputError
from shards.manifest import Manifest
from shards.merge import merge
from shards.part import Part
from shards.progress import Progress
from shards.readers import imagefolder

OPTIONS = {"seed": 3, "noise": noise.parse("symmetric:0.3"), "samples_per_shard": 7, "workers": 1}


class Counting(Progress):
    """Remembers how many images were to be written and what was said, and acts after each shard."""

    def __init__(self, act: Callable[[int], None] = lambda done: None) -> None:
        self.total, self.said, self.act, self.done = -1, [], act, 0

    def start(self, total: int, unit: str) -> None:
        self.total = total

    def advance(self, count: int) -> None:
        if count <= 7:  # a shard, not the files looked at
            self.done += 1
            self.act(self.done)

    def say(self, line: str) -> None:
        self.said.append(line)


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with serving() as started:
        yield started


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remotefolder, "_FIRST_WAIT", 0.05)


def write(raw: Path, out: str, **changes: object) -> Manifest:
    return build(imagefolder.read(raw, None), out, **(OPTIONS | changes))


def test_a_bucket_holds_what_a_folder_would(
    raw: Path,
    built: Manifest,
    bucket: Bucket,
    contents: Callable[[Path], dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    manifest = write(raw, f"s3://{BUCKET}/whole", workers=2)
    assert manifest.fingerprint == built.fingerprint
    assert bucket.contents("whole") == contents(built.root)
    progress = Counting()
    assert write(raw, f"s3://{BUCKET}/whole", progress=progress).fingerprint == built.fingerprint
    assert progress.said == [f"s3://{BUCKET}/whole: holds this very build already; nothing to do"]
    with pytest.raises(InputError, match=r"another build \(seed 3 there, 4 asked\)"):
        write(raw, f"s3://{BUCKET}/whole", seed=4)
    bucket.client().delete_object(Bucket=BUCKET, Key="whole/shard-000002.tar")
    with pytest.raises(InputError, match=r"cannot be used \(shard-000002.tar is missing\)"):
        write(raw, f"s3://{BUCKET}/whole")


def test_a_build_that_was_stopped_goes_on(
    raw: Path,
    built: Manifest,
    bucket: Bucket,
    contents: Callable[[Path], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened, whole = [], worker.open_writer

    def failing(file: IO[bytes]) -> object:
        opened.append(file)
        if len(opened) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(file)

    monkeypatch.setattr(worker, "open_writer", failing)
    with pytest.raises(InputError, match=r"No space left on device, while shard-000003.tar was made there; free some"):
        write(raw, f"s3://{BUCKET}/stopped")
    there = bucket.contents("stopped")
    assert sorted(name for name in there if name.endswith(".tar")) == [f"shard-{i:06d}.tar" for i in range(3)]
    with pytest.raises(InputError, match="another, unfinished build"):
        write(raw, f"s3://{BUCKET}/stopped", seed=4)
    bucket.client().put_object(Bucket=BUCKET, Key="stopped/shard-000001.tar", Body=b"cut short")
    bucket.client().delete_object(Bucket=BUCKET, Key="stopped/.build/shard-000002.tar.json")  # killed just before it
    progress = Counting()
    write(raw, f"s3://{BUCKET}/stopped", progress=progress)
    assert progress.total == 60 - 1 * 7
    assert bucket.contents("stopped") == contents(built.root)


def test_a_server_that_is_away_for_a_while_is_waited_for(
    raw: Path,
    built: Manifest,
    bucket: Bucket,
    contents: Callable[[Path], dict[str, bytes]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    def stop(done: int) -> None:
        if done == 3:
            bucket.down()
            threading.Timer(1, bucket.up).start()

    write(raw, f"s3://{BUCKET}/away", progress=Counting(stop))
    assert bucket.contents("away") == contents(built.root)
    assert "shard-000003.tar: " in capfd.readouterr().err


def test_a_server_that_stays_away_ends_it_and_nothing_is_lost(
    raw: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remotefolder, "_SECONDS", 0.5)

    def stop(done: int) -> None:
        if done == 2:
            bucket.down()

    with pytest.raises(InputError, match=f"s3://{BUCKET}/lost/shard-000002.tar: .*; gave up after .*to go on"):
        write(raw, f"s3://{BUCKET}/lost", progress=Counting(stop))
    bucket.up()
    progress = Counting()
    write(raw, f"s3://{BUCKET}/lost", progress=progress)
    assert progress.total == 60 - 2 * 7


def test_bad_addresses_are_told_before_anything_is_written(raw: Path, bucket: Bucket) -> None:
    with pytest.raises(InputError, match="s3://nowhere/train/.build/plan.json: there is no such bucket"):
        write(raw, "s3://nowhere/train")
    bucket.client().put_object(Bucket=BUCKET, Key="mine/thesis.txt", Body=b"x")
    with pytest.raises(InputError, match=r"--out s3://photos/mine: holds other files \(thesis.txt\)"):
        write(raw, f"s3://{BUCKET}/mine")
    assert list(bucket.contents("mine")) == ["thesis.txt"]


def test_parts_meet_in_a_bucket(
    raw: Path, built: Manifest, bucket: Bucket, contents: Callable[[Path], dict[str, bytes]], tmp_path: Path
) -> None:
    source, url = imagefolder.read(raw, None), f"s3://{BUCKET}/parts"
    for part, out in ((Part(1, 3), url), (Part(2, 3), url), (Part(3, 3), str(tmp_path / "third"))):
        assert build_part(source, out, part, **OPTIONS)
    with pytest.raises(InputError, match=r"3 of 9 .*: part 3/3"):
        merge([url])
    assert merge([url, tmp_path / "third"]).fingerprint == built.fingerprint
    assert bucket.contents("parts") == contents(built.root)
