"""What wandb is told of a run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from viewed import EVAL, IDENTITY, SUMMARY, configured, follow, nothing_left, records, started, warnings

from pipeline.record import view
from pipeline.record.track import Tracker

if TYPE_CHECKING:
    from tests.record.conftest import Server

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("patience")]


def test_offline_holds_what_the_run_is_and_attempts_become_one_curve(
    tmp_path: Path, server: "Server", capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path)
    first = started(config)
    follow(first, range(1, 7))
    kept_by_a_worker = os.dup(first._wandb._process.stdin.fileno())  # type: ignore[union-attr]
    first.pause(6, "SIGTERM", None)
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
        tables["data"]["train"] = "http://127.0.0.1:9/train"
        assert "s3cr3t" not in str(found)
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
    subprocess.run(command, check=True, timeout=100, capture_output=True, cwd=tmp_path)
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
    first.pause(4, "SIGTERM", None)
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


def test_a_run_that_is_killed_leaves_no_process_and_every_record(tmp_path: Path) -> None:
    config = configured(tmp_path)
    code = f"""
import os, signal
from pathlib import Path
import viewed
tracker = viewed.started(viewed.configured(Path({str(tmp_path)!r})))
viewed.is_in(tracker)
viewed.follow(tracker, range(1, 11))
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, timeout=100, check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL
    assert nothing_left()
    ((_, found),) = records(config.folder)
    assert sum(r.WhichOneof("record_type") == "history" for r in found) == 10
    assert next(r.exit.exit_code for r in found if r.WhichOneof("record_type") == "exit") == 1
