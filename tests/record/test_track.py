"""The record: whole lines on disk, one live line on a terminal, wandb as a view that may fail."""

import contextlib
import json
import os
import pty
import sys
import termios
from pathlib import Path

import pytest

from pipeline import configfile
from pipeline.config import Config
from pipeline.record.track import Tracker, read_metrics

TRAIN = {"epoch": 0.5, "lr": 0.1, "loss": 1.5, "images_per_s": 10.0, "data_wait": 0.25, "memory_gb": 1.0}
EVAL = {"epoch": 1.0, "set": "val", "main/top1": 0.5, "averaged/top1": 0.75}


def configured(folder: Path) -> Config:
    tables = {
        "run": {"dir": str(folder)},
        "data": {"train": "x"},
        "optim": {"epochs": 1},
        "track": {"wandb": "disabled"},
    }
    return configfile.parse(tables, name="tracked", where="test")


def test_records_are_json_with_null_for_what_is_not_finite(tmp_path: Path) -> None:
    config = configured(tmp_path)
    tracker = Tracker(config, leader=True, total_steps=10, start_step=0)
    tracker.log("train", 5, TRAIN | {"loss": float("nan")})
    tracker.log("eval", 10, EVAL)
    tracker.finish({"steps": 10})
    lines = (config.folder / "metrics.jsonl").read_text().splitlines()

    def strict(name: str) -> None:
        raise AssertionError(name)

    first, second = (json.loads(line, parse_constant=strict) for line in lines)
    assert first["loss"] is None
    assert (second["kind"], second["step"], second["set"], second["main/top1"]) == ("eval", 10, "val", 0.5)
    assert json.loads((config.folder / "summary.json").read_text()) == {"steps": 10}
    assert configfile.load(config.folder / "config.toml") == config


def test_only_the_leader_writes(tmp_path: Path) -> None:
    config = configured(tmp_path)
    tracker = Tracker(config, leader=False, total_steps=10, start_step=0)
    tracker.log("train", 5, TRAIN)
    tracker.progress(5)
    tracker.pause(5, "SIGTERM", None)
    tracker.finish({"steps": 10})
    assert not config.folder.exists()


def test_a_restart_keeps_what_came_up_to_the_checkpoint(tmp_path: Path) -> None:
    config = configured(tmp_path)
    tracker = Tracker(config, leader=True, total_steps=10, start_step=0)
    for step in (2, 4, 6):
        tracker.log("train", step, TRAIN)
    tracker.close()
    with (config.folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert [r["step"] for r in read_metrics(config.folder)] == [2, 4, 6]
    Tracker(config, leader=True, total_steps=10, start_step=4).close()
    assert [r["step"] for r in read_metrics(config.folder)] == [2, 4]
    Tracker(config, leader=True, total_steps=10, start_step=0).close()
    assert read_metrics(config.folder) == []


def test_a_log_gets_plain_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker(configured(tmp_path), leader=True, total_steps=10, start_step=0)
    tracker._began -= 10.0  # five steps took as long
    tracker.progress(5)
    tracker.log("train", 5, TRAIN)
    tracker.log("eval", 10, EVAL)
    tracker.log("train", 10, TRAIN | {"vs_reference/images_per_s": 2.5})
    tracker.log("eval", 10, EVAL | {"vs_reference/main/top1": -0.0125})
    tracker.log("norms", 10, {"epoch": 1.0, "input": 1.23456})
    tracker.pause(10, "SIGTERM", None)
    errors = capsys.readouterr().err
    assert "\r" not in errors
    assert errors.splitlines() == [
        "tracked 5/10 epoch 0.50  lr 0.1000  loss 1.500  10 images/s  waiting 25%  1.0 GB  0:00:10 left",
        "tracked 10/10 epoch 1  val: main 50.00%  averaged 75.00%",
        "tracked 10/10 epoch 0.50  lr 0.1000  loss 1.500  10 images/s  waiting 25%  1.0 GB"
        "  (2.50 x the reference's images/s)  0:00:00 left",
        "tracked 10/10 epoch 1  val: main 50.00%  averaged 75.00%  (main -1.25 points to the reference)",
        "tracked 10/10 norms: epoch 1  input 1.235",
        "tracked: stopped at step 10 of 10 (SIGTERM); --resume auto goes on",
    ]


def test_a_terminal_gets_one_live_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 160))
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        tracker = Tracker(configured(tmp_path), leader=True, total_steps=10, start_step=0)
        tracker.log("train", 5, TRAIN)
        tracker.progress(5)
        tracker.log("eval", 10, EVAL)
        tracker.close()
    shown = ""
    with contextlib.suppress(OSError):  # the end of a terminal that the other side has closed
        while data := os.read(master, 100_000):
            shown += data.decode()
    os.close(master)
    assert "\r" in shown
    assert "5/10" in shown
    assert "10 images/s" in shown
    assert "val: main 50.00%  averaged 75.00%\r\n" in shown
