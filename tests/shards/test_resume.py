"""A build that is stopped at any moment continues, and ends with the bytes of an undisturbed one."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import psutil
import pytest

from shards import noise, worker
from shards.build import build
from shards.errors import InputError
from shards.manifest import Manifest
from shards.progress import Progress
from shards.readers import imagefolder
from shards.tar import index_tar

Contents = Callable[[Path], dict[str, bytes]]

SCRIPT = """
import sys, time
from pathlib import Path
from shards.build import build
from shards.progress import Progress
from shards.readers import imagefolder

class Slow(Progress):
    def advance(self, count):
        time.sleep(0.05)

if __name__ == "__main__":
    build(imagefolder.read(Path(sys.argv[1]), None), sys.argv[2], samples_per_shard=1, workers=2, progress=Slow())
"""


class Counting(Progress):
    """Remembers how many images were to be written, and what was said."""

    def __init__(self) -> None:
        self.total = -1
        self.said: list[str] = []

    def start(self, total: int, unit: str) -> None:
        self.total = total

    def say(self, line: str) -> None:
        self.said.append(line)


def resume(raw: Path, out: Path, **changes: object) -> Counting:
    options = {"seed": 3, "noise": noise.parse("symmetric:0.3"), "samples_per_shard": 7, "workers": 1}
    progress = Counting()
    build(imagefolder.read(raw, None), out, progress=progress, **(options | changes))
    return progress


@pytest.mark.parametrize(
    ("victim", "number"), [("build", signal.SIGKILL), ("build", signal.SIGINT), ("worker", signal.SIGKILL)]
)
def test_survives_a_real_kill(
    raw: Path, tmp_path: Path, contents: Contents, victim: str, number: signal.Signals
) -> None:
    out, script = tmp_path / "out", tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, str(script), str(raw), str(out)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(out.glob("shard-*.tar"))) < 4:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    family = psutil.Process(process.pid).children()
    workers = [child for child in family if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    os.kill(process.pid if victim == "build" else workers[0].pid, number)
    error = process.communicate(timeout=30)[1]
    assert process.returncode != 0
    if victim == "worker":
        assert "InputError: --workers 2: a worker process died" in error
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []

    there = sorted(out.glob("shard-*.tar"))
    assert 4 <= len(there) < 60
    for path in there:
        with open(path, "rb") as file:
            assert len(list(index_tar(file))) == 2
    with pytest.raises(InputError, match="half-finished"):
        Manifest.load(out)

    finished = len(list(out.glob(".build/*.tar.json")))
    assert len(there) - 2 <= finished <= len(there)  # each worker may have died between a shard and its sidecar
    progress = resume(raw, out, seed=0, noise=None, samples_per_shard=1)
    assert progress.total == 60 - finished
    assert "continuing" in progress.said[0]
    resume(raw, tmp_path / "undisturbed", seed=0, noise=None, samples_per_shard=1)
    assert contents(out) == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b'{"build": "x"}', b"[" * 100_000])
def test_a_damaged_plan_is_no_plan(
    built: Manifest,
    raw: Path,
    tmp_path: Path,
    contents: Contents,
    stop_at: Callable[[int, Exception], None],
    damaged: bytes,
) -> None:
    out = tmp_path / "out"
    stop_at(4, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(InputError):
        resume(raw, out)
    (out / ".build/plan.json").write_bytes(damaged)
    for name in ("shard-000001.tar", "shard-000077.tar"):  # of another build, as its sidecar says or does not say
        (out / name).write_bytes(b"x")
    (out / ".build/shard-000002.tar.json").write_bytes(b"[1]")
    assert resume(raw, out).total == 60 - 7
    assert contents(out) == contents(built.root)


def test_a_shard_gets_its_name_when_it_is_whole(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the very file that was written and synced, renamed: no copy that a kill could cut."""
    whole: dict[int, int] = {}
    file_digest = worker.hashlib.file_digest

    def spy(file: IO[bytes], name: str) -> object:
        status = os.fstat(file.fileno())
        whole[status.st_ino] = status.st_size
        assert len(list((tmp_path / "out").glob("shard-*.tar"))) == len(whole) - 1
        return file_digest(file, name)

    monkeypatch.setattr(worker.hashlib, "file_digest", spy)
    resume(raw, tmp_path / "out")
    built = [file.stat() for file in (tmp_path / "out").glob("shard-*.tar")]
    assert {status.st_ino: status.st_size for status in built} == whole


def test_only_shards_of_this_very_build_are_used_again(
    built: Manifest, raw: Path, tmp_path: Path, contents: Contents, stop_at: Callable[[int, Exception], None]
) -> None:
    out = tmp_path / "out"
    stop_at(5, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(InputError):
        resume(raw, out)
    foreign, shorter = (out / f".build/shard-00000{index}.tar.json" for index in (0, 1))
    foreign.write_text(json.dumps(json.loads(foreign.read_text()) | {"build": "0" * 64}))
    tar = out / "shard-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    assert shorter.exists()
    assert resume(raw, out).total == 60 - 2 * 7
    assert contents(out) == contents(built.root)


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Exception], None]:
    """Let the n-th shard of the next build fail halfway."""

    def arm(shard: int, error: Exception) -> None:
        open_writer, opened = worker.open_writer, 0

        def failing(file: IO[bytes]) -> object:
            nonlocal opened
            opened += 1
            if opened == shard:
                file.write(b"half a shard")
                monkeypatch.setattr(worker, "open_writer", open_writer)
                raise error
            return open_writer(file)

        monkeypatch.setattr(worker, "open_writer", failing)

    return arm


def test_survives_a_full_disk(
    built: Manifest, raw: Path, tmp_path: Path, contents: Contents, stop_at: Callable[[int, Exception], None]
) -> None:
    out = tmp_path / "out"
    stop_at(4, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(InputError, match=r"out: No space left on device; mend this and run the same again"):
        resume(raw, out)
    assert sorted(file.name for file in out.iterdir()) == [".build", *(f"shard-{i:06d}.tar" for i in range(3))]
    assert list(out.glob(".build/*.tmp")) == []
    assert resume(raw, out).total == 60 - 3 * 7
    assert contents(out) == contents(built.root)


def test_names_an_image_that_vanishes_or_changes_on_the_way(
    built: Manifest, raw: Path, tmp_path: Path, contents: Contents
) -> None:
    root = shutil.copytree(raw, tmp_path / "raw")
    source = imagefolder.read(root, None)
    file = root / built.key(30)
    whole, times = file.read_bytes(), file.stat()

    class Meddle(Progress):
        def __init__(self, change: Callable[[], object]) -> None:
            self.change = change

        def start(self, total: int, unit: str) -> None:
            if unit == "images":  # they were looked at before
                self.change()

    for change, words in [
        (file.unlink, "cannot be read"),
        (lambda: file.write_bytes(b"x"), "changed while it was read"),
    ]:
        with pytest.raises(InputError, match=words):
            build(
                source,
                tmp_path / "out",
                seed=3,
                noise=noise.parse("symmetric:0.3"),
                samples_per_shard=7,
                workers=1,
                progress=Meddle(change),
            )
        file.write_bytes(whole)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert resume(root, tmp_path / "out").total == 60 - 4 * 7
    assert contents(tmp_path / "out") == contents(built.root)


def test_raw_files_that_changed_meanwhile_start_it_again(
    built: Manifest, raw: Path, tmp_path: Path, contents: Contents, stop_at: Callable[[int, Exception], None]
) -> None:
    root, out = shutil.copytree(raw, tmp_path / "raw"), tmp_path / "out"
    first = root / built.key(0)
    whole = first.read_bytes()
    first.write_bytes(bytes(len(whole)))
    stop_at(3, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(InputError):
        resume(root, out)
    first.write_bytes(whole)
    os.utime(first, (5, 5))
    progress = resume(root, out)
    assert progress.total == 60
    assert "starting again" in progress.said[0]
    assert contents(out) == contents(built.root)


def test_another_unfinished_build_is_named_and_kept(
    raw: Path, tmp_path: Path, contents: Contents, stop_at: Callable[[int, Exception], None]
) -> None:
    out = tmp_path / "out"
    stop_at(3, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(InputError):
        resume(raw, out)
    before = contents(out)
    with pytest.raises(InputError, match=r"another, unfinished build.*seed 3 there, 4 asked"):
        resume(raw, out, seed=4)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds other files \(notes\.txt\)"):
        resume(raw, out)
    (out / "notes.txt").unlink()
    assert contents(out) == before


def test_a_build_that_wrote_nothing_blocks_no_other(
    raw: Path, tmp_path: Path, stop_at: Callable[[int, Exception], None]
) -> None:
    stop_at(1, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(InputError):
        resume(raw, tmp_path / "out")
    assert resume(raw, tmp_path / "out", seed=4).total == 60


def test_one_build_at_a_time(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "out/.build").mkdir(parents=True)
    with open(tmp_path / "out/.build/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another build is writing there"):
            resume(raw, tmp_path / "out")
    assert resume(raw, tmp_path / "out").total == 60
    assert not (tmp_path / "out/.build").exists()
