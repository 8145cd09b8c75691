"""Ctrl-C ends a build at once, in one line, and leaves nothing that the next one could not go on from."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from PIL import Image

from shards import interrupts
from shards.build import build
from shards.readers import imagefolder

LONG_SHARDS = """
import sys
from pathlib import Path
from shards.build import build
from shards.readers.record import Record, Source

if __name__ == "__main__":
    image = Path(sys.argv[1]).read_bytes()
    records = [Record(f"bird/{i:05d}.png", "png", 0, content=image) for i in range(60_000)]
    source = Source("long", "train", ("bird",), records)
    build(source, sys.argv[2], samples_per_shard=30_000, workers=2)
"""


def test_ctrl_c_does_not_wait_for_the_shards_under_way(tmp_path: Path, picture: Callable[..., Image.Image]) -> None:
    picture(1).save(tmp_path / "one.png")
    out, script = tmp_path / "out", tmp_path / "script.py"
    script.write_text(LONG_SHARDS)
    process = subprocess.Popen([sys.executable, str(script), tmp_path / "one.png", out], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(out.glob(".build/shard-*.tmp"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    workers = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) != 0
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    assert list(out.glob("shard-*")) == []


INTERRUPTED = """
import sys
from pathlib import Path
from shards.build import build
from shards.progress import Bar
from shards.readers import imagefolder

if __name__ == "__main__":
    try:
        build(imagefolder.read(Path(sys.argv[1]), None), sys.argv[2], samples_per_shard=1, workers=2, progress=Bar())
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.fixture(scope="module")
def many(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five times the files: shards of one keep a build busy for a second, wherever it runs."""
    root = tmp_path_factory.mktemp("many")
    for label in sorted(path for path in raw.iterdir() if path.is_dir()):
        for copy in range(5):
            shutil.copytree(label, root / label.name / str(copy))
    return root


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.15, 0.4])
def test_ctrl_c_while_the_workers_start_is_one_line(many: Path, tmp_path: Path, delay: float) -> None:
    """A terminal sends it to the whole group; what a worker would say of it is a traceback."""
    out, script = tmp_path / "out", tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    process = subprocess.Popen(
        [sys.executable, str(script), str(many), str(out)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    parent = psutil.Process(process.pid)
    deadline = time.monotonic() + 60
    while not any("spawn_main" in " ".join(child.cmdline()) for child in parent.children()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    workers = parent.children()
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 130, error
    said = [line for line in error.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]
    assert said == [f"{out}: not finished; the same command goes on where it stopped"]
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    assert build(imagefolder.read(many, None), out, samples_per_shard=1, workers=1).num_samples == 300


def test_ctrl_c_is_held_back_and_comes_after() -> None:
    done: list[str] = []

    def work() -> None:
        with interrupts.deferred():
            signal.raise_signal(signal.SIGINT)
            done.append("all")
        done.append("more")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
