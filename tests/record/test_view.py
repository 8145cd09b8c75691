"""wandb as a view that may fail: what it is told, and that it never stops or delays a run."""

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from pipeline import configfile
from pipeline.config import Config
from pipeline.record import view
from pipeline.record.track import Tracker, read_metrics

if TYPE_CHECKING:
    from tests.record.conftest import Server

pytestmark = pytest.mark.timeout(45)

PATIENCE_S = 3.0
TRAIN = {"epoch": 0.5, "lr": 0.1, "loss": 1.5, "images_per_s": 10.0, "data_wait": 0.25, "memory_gb": 1.0}
EVAL = {"epoch": 1.0, "set": "val", "main/top1": 0.5, "averaged/top1": 0.75}
IDENTITY = {"data.train (fingerprint)": "sha256:abc", "classes": 3}
SUMMARY = {"steps": 10, "sets": {"val": {"main/top1": 0.5}}}


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(view, "PATIENCE_S", PATIENCE_S)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # no settings or key of whoever runs this


def configured(folder: Path, wandb: str = "offline") -> Config:
    track = {"wandb": wandb, "group": "noise"}
    tables = {"run": {"dir": str(folder)}, "data": {"train": "x"}, "optim": {"epochs": 1}, "track": track}
    return configfile.parse(tables, name="viewed", where="test")


def started(config: Config, start_step: int = 0) -> Tracker:
    return Tracker(config, leader=True, total_steps=10, start_step=start_step, identity=IDENTITY)


def is_in(tracker: Tracker) -> None:
    """Wait for wandb to take the run."""
    until = time.monotonic() + 20
    while tracker._wandb._directory is None and time.monotonic() < until:
        time.sleep(0.05)
        tracker._wandb._listen()
    assert tracker._wandb._directory


def follow(tracker: Tracker, steps: range) -> float:
    """Log the steps; returns the longest time that one took, seconds."""
    slowest = 0.0
    for step in steps:
        began = time.monotonic()
        tracker.log("train", step, TRAIN)
        slowest = max(slowest, time.monotonic() - began)
    return slowest


def warnings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "warning" in line.lower() or "wandb" in line]


def complete(config: Config) -> bool:
    steps = [r["step"] for r in read_metrics(config.folder) if r["kind"] == "train"]
    return steps == list(range(1, 11)) and json.loads((config.folder / "summary.json").read_text()) == SUMMARY


def nothing_left() -> bool:
    """Every process that this test began, known by its HOME, is gone after a few seconds."""

    def left(process: psutil.Process) -> bool:
        try:
            return bool(process.environ().get("HOME") == os.environ["HOME"])
        except psutil.Error:
            return False

    until = time.monotonic() + 10
    while (found := any(map(left, psutil.process_iter()))) and time.monotonic() < until:
        time.sleep(0.1)
    return not found


def records(folder: Path) -> list[tuple[str, list[Any]]]:
    """What wandb's offline logs hold, oldest first: directory and records.

    A log is LevelDB's: blocks of 32 KiB after 7 bytes of wandb's, fragments with checksum, length and type.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime):
        data, at, held, read = path.read_bytes(), 7, b"", []
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            _, length, kind = struct.unpack_from("<IHB", data, at)
            held += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or the last fragment
                read.append(Record.FromString(held))
                held = b""
        found.append((path.parent.name, read))
    return found


def test_offline_holds_what_the_run_is_and_attempts_become_one_curve(
    tmp_path: Path, server: "Server", capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path)
    first = started(config)
    follow(first, range(1, 7))
    kept_by_a_worker = os.dup(first._wandb._process.stdin.fileno())  # type: ignore[union-attr]
    first.pause(6)
    os.close(kept_by_a_worker)
    second = started(config, start_step=4)
    follow(second, range(5, 11))
    second.log("eval", 10, EVAL)
    second.finish(SUMMARY)
    assert warnings(capsys) == []
    assert nothing_left()

    attempts = records(config.folder)
    assert len(attempts) == 2
    run_id = (config.folder / "wandb" / "id").read_text().strip()
    for directory, found in attempts:
        assert directory.endswith(f"-{run_id}")
        run = next(r.run for r in found if r.WhichOneof("record_type") == "run")
        assert (run.run_id, run.run_group, run.project, run.display_name) == (run_id, "noise", "alasca", "viewed")
        noted = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert noted["identity"] == IDENTITY
        tables = config.model_dump(mode="json")
        assert {name: noted[name] for name in tables} == tables
        metrics = [r.metric for r in found if r.WhichOneof("record_type") == "metric"]
        assert any(m.glob_name == "*" and m.step_metric == "step" for m in metrics)
    history = [
        [{i.nested_key[0] if i.nested_key else i.key: json.loads(i.value_json) for i in r.history.item} for r in found]
        for _, found in attempts
    ]
    steps = [[line["step"] for line in lines if "train/loss" in line] for lines in history]
    assert steps == [[1, 2, 3, 4, 5, 6], [5, 6, 7, 8, 9, 10]]
    ranked = {m.name: m.summary for m in metrics if m.name.startswith("eval")}
    assert set(ranked) == {"eval/val/main/top1", "eval/val/averaged/top1"}
    assert all(kinds.max and kinds.last for kinds in ranked.values())
    said = [i for r in attempts[-1][1] for i in r.summary.update]
    assert any(i.key == "steps" and json.loads(i.value_json) == 10 for i in said)

    assert server.requests == 0
    command = [sys.executable, "-m", "wandb", "sync", str(config.folder / "wandb")]
    subprocess.run(command, check=True, timeout=30, capture_output=True)
    curve = [line["step"] for _, line in sorted(server.lines.items()) if "train/loss" in line]
    assert curve == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8, 9, 10]

    assert view._run_id(config.folder / "wandb" / "id", resumed=False) != run_id  # from the beginning: another run


def test_only_the_leader_has_a_view(tmp_path: Path) -> None:
    config = configured(tmp_path)
    before = psutil.Process().children()
    tracker = Tracker(config, leader=False, total_steps=10, start_step=0, identity=IDENTITY)
    follow(tracker, range(1, 11))
    assert psutil.Process().children() == before
    tracker.finish(SUMMARY)
    assert not config.folder.exists()


def test_online_a_resumed_run_continues_its_curve(
    tmp_path: Path, server: "Server", capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path, "online")
    first = started(config)
    follow(first, range(1, 5))
    first.pause(4)
    second = started(config, start_step=4)
    follow(second, range(5, 11))
    second.finish(SUMMARY)
    assert warnings(capsys) == []
    assert [line["step"] for _, line in sorted(server.lines.items())] == list(range(1, 11))
    assert {upload["name"] for upload in server.uploads} == {(config.folder / "wandb" / "id").read_text().strip()}
    assert server.uploads[0]["groupName"] == "noise"
    assert json.loads(server.uploads[0]["config"])["identity"]["value"] == IDENTITY
    assert json.loads(server.summary)["steps"] == 10
    assert nothing_left()


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
    assert time.monotonic() - began < 1
    assert follow(tracker, range(1, 11)) < 0.5
    tracker.finish(SUMMARY)
    took = time.monotonic() - began
    assert complete(config)
    (warning,) = warnings(capsys)
    assert re.match(r"warning: wandb is out \(.+\); the run goes on, metrics.jsonl has everything$", warning)
    assert took < 2 + view._GRACE_S
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
    assert follow(tracker, range(6, 11)) < 0.5
    began = time.monotonic()
    tracker.finish(SUMMARY)
    took = time.monotonic() - began
    assert complete(config)
    (warning,) = warnings(capsys)
    directory = Path(warning.split("later: wandb sync --include-online ")[1])
    assert list(directory.glob("*.wandb"))
    assert took < PATIENCE_S + 10
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
    assert follow(tracker, range(1, 6)) < 0.5
    viewer.send_signal(signal.SIGKILL)
    assert follow(tracker, range(6, 11)) < 0.5
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


def test_a_run_that_is_killed_leaves_no_process_and_every_record(tmp_path: Path) -> None:
    config = configured(tmp_path)
    code = f"""
import os, signal
from pathlib import Path
import test_view
tracker = test_view.started(test_view.configured(Path({str(tmp_path)!r})))
test_view.is_in(tracker)
test_view.follow(tracker, range(1, 11))
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, timeout=30, check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL
    assert nothing_left()
    ((_, found),) = records(config.folder)
    assert sum(r.WhichOneof("record_type") == "history" for r in found) == 10
    assert next(r.exit.exit_code for r in found if r.WhichOneof("record_type") == "exit") == 1
