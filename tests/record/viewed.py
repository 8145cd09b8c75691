"""A run that wandb is to see, and what is left of it: what the tests of the view share."""

import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline import configfile
from pipeline.config import Config
from pipeline.record.track import Tracker, read_metrics

PATIENCE_S = 3.0
TRAIN = {"epoch": 0.5, "lr": 0.1, "loss": 1.5, "images_per_s": 10.0, "data_wait": 0.25, "memory_gb": 1.0}
EVAL = {"epoch": 1.0, "set": "val", "main/top1": 0.5, "averaged/top1": 0.75}
IDENTITY = {"data.train (fingerprint)": "sha256:abc", "classes": 3}
SUMMARY = {"steps": 10, "sets": {"val": {"main/top1": 0.5}}}


def configured(folder: Path, wandb: str = "offline") -> Config:
    track = {"wandb": wandb, "group": "noise"}
    data = {"train": "http://me:s3cr3t@127.0.0.1:9/train?sig=s3cr3t"}
    tables = {"run": {"dir": str(folder)}, "data": data, "optim": {"epochs": 1}, "track": track}
    return configfile.parse(tables, name="viewed", where="test")


def started(config: Config, start_step: int = 0) -> Tracker:
    return Tracker(config, leader=True, total_steps=10, start_step=start_step, identity=IDENTITY)


def is_in(tracker: Tracker) -> None:
    """Wait for wandb to take the run."""
    until = time.monotonic() + 60
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

    until = time.monotonic() + 30
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
