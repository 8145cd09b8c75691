"""Whatever happens to wandb: one warning, and the run neither stops nor waits."""

import contextlib
import re
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from viewed import SUMMARY, TRAIN, complete, configured, follow, is_in, nothing_left, started, warnings

from pipeline.config import Config
from pipeline.record import view

if TYPE_CHECKING:
    from tests.record.conftest import Server

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("patience")]

BRIEF = 5.0  # seconds: wandb itself would block for more


@pytest.mark.parametrize("server", ["slow", "error", "garbage"], indirect=True)
def test_a_server_that_is_ill_is_one_warning(
    tmp_path: Path, server: "Server", capsys: pytest.CaptureFixture[str]
) -> None:
    ill(configured(tmp_path, "online"), capsys)
    assert server.requests


def test_a_server_that_is_down_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # taken, and nobody listens
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        ill(configured(tmp_path, "online"), capsys)


def ill(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    view.PATIENCE_S = 1.0  # the fixture sets it back
    began = time.monotonic()
    tracker = started(config)
    assert time.monotonic() - began < BRIEF
    assert follow(tracker, range(1, 11)) < BRIEF
    tracker.finish(SUMMARY)
    took = time.monotonic() - began
    assert complete(config)
    (warning,) = warnings(capsys)
    assert re.match(r"warning: wandb is out \(.+\); the run goes on, metrics.jsonl has everything$", warning)
    assert took < 60
    assert nothing_left()
    print(f"{took:.1f} s: {warning}", file=sys.stderr)


@pytest.mark.parametrize("state", ["slow", "gone"])
def test_a_server_that_falls_ill_in_mid_run_is_one_warning(
    tmp_path: Path, server: "Server", state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path, "online")
    tracker = started(config)
    is_in(tracker)
    follow(tracker, range(1, 6))
    server.state = state
    if state == "gone":
        server.socket.close()  # refused from now on
        server.state = "error"  # on the connections that are left
    assert follow(tracker, range(6, 11)) < BRIEF
    began = time.monotonic()
    tracker.finish(SUMMARY)
    took = time.monotonic() - began
    assert complete(config)
    (warning,) = warnings(capsys)
    directory = Path(warning.split("later: wandb sync --include-online ")[1])
    assert list(directory.glob("*.wandb"))
    assert took < 60
    assert nothing_left()
    print(f"{took:.1f} s: {warning}", file=sys.stderr)


def test_processes_that_die_are_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path)
    before = set(psutil.Process().children())
    tracker = started(config)
    is_in(tracker)
    (viewer,) = set(psutil.Process().children()) - before
    service = viewer.children(recursive=True)
    assert service, "wandb runs a service of its own"
    for process in service:
        with contextlib.suppress(psutil.NoSuchProcess):  # one follows the other
            process.send_signal(signal.SIGKILL)
    assert follow(tracker, range(1, 6)) < BRIEF
    with contextlib.suppress(psutil.NoSuchProcess):  # it may have noticed, and ended
        viewer.send_signal(signal.SIGKILL)
    assert follow(tracker, range(6, 11)) < BRIEF
    tracker.finish(SUMMARY)
    assert complete(config)
    assert len(warnings(capsys)) == 1
    assert nothing_left()


@pytest.mark.parametrize(
    ("wide", "pause", "reason"),
    [(1000, 0.0, "takes nothing in"), (0, 0.5, "does not answer"), (0, 0.0, "does not end")],
)
def test_a_process_that_hangs_is_one_warning(
    tmp_path: Path,
    wide: int,
    pause: float,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "deaf.py").write_text("import time\ntime.sleep(60)\n")
    for name, value in {"_VIEWER": tmp_path / "deaf.py", "_BACKLOG": 1000, "PATIENCE_S": 0.2, "_GRACE_S": 0.2}.items():
        monkeypatch.setattr(view, name, value)
    config = configured(tmp_path)
    began = time.monotonic()
    tracker = started(config)
    for step in range(1, 11):
        tracker.log("train", step, TRAIN | {f"x{i}": float(i) for i in range(wide)})
        time.sleep(pause if step == 1 else 0)
    tracker.finish(SUMMARY)
    assert time.monotonic() - began < 5
    assert complete(config)
    (warning,) = warnings(capsys)
    assert reason in warning
    assert nothing_left()


def test_wandb_that_is_not_there_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wandb.py").write_text("raise ImportError('there is no wandb')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    config = configured(tmp_path)
    tracker = started(config)
    follow(tracker, range(1, 11))
    tracker.finish(SUMMARY)
    assert complete(config)
    (warning,) = warnings(capsys)
    assert "there is no wandb" in warning


def test_a_disk_that_takes_no_more_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    (tmp_path / "sitecustomize.py").write_text(f"import resource\n{limit}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # wandb's processes read it, this one did not
    config = configured(tmp_path)
    tracker = started(config)
    follow(tracker, range(1, 11))
    for _ in range(300):
        tracker.log("bad", 10, {"dataset": "train", "position": 1})
    tracker.finish(SUMMARY)
    assert complete(config)
    (warning,) = warnings(capsys)
    assert "could not write" in warning
    assert nothing_left()


def test_a_folder_that_takes_no_view_is_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path)
    config.folder.mkdir(parents=True)
    (config.folder / "wandb").write_text("in the way")
    tracker = started(config)
    follow(tracker, range(1, 11))
    tracker.finish(SUMMARY)
    assert complete(config)
    assert len(warnings(capsys)) == 1
