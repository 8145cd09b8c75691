"""A run in relation to another: ratios and differences worked out by hand, while the other one grows."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.record.reference import Reference
from shards.errors import InputError


def train(step: int, **changes: float) -> dict[str, Any]:
    figures = {"samples": 64 * step, "images_per_s": 100.0, "memory_gb": 2.0, "top1": 0.5, "seconds": 6.4}
    return {"kind": "train", "step": step, **figures, **changes}


def evaluation(step: int, accuracy: float, seconds: float, name: str = "test", **more: float) -> dict[str, Any]:
    fields = {"set": name, "samples": 64 * step, "train_seconds": seconds, "main/top1": accuracy}
    return {"kind": "eval", "step": step, **fields, **more}


def write(folder: Path, *records: dict[str, Any], tail: str = "") -> None:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + tail)


def test_a_record_is_matched_by_samples_seen(tmp_path: Path) -> None:
    write(tmp_path / "har", train(10), train(20, images_per_s=50.0, memory_gb=4.0, top1=0.75), train(30))
    reference = Reference(tmp_path / "har")
    # Ours has batches of 128: step 10 has seen what theirs had at step 20.
    ours = train(10, samples=1280, images_per_s=150.0, memory_gb=3.0, top1=0.5)
    found = reference.training(ours)
    assert found == {
        "vs_reference/images_per_s": 3.0,
        "vs_reference/memory_gb": 0.75,
        "vs_reference/step_seconds": pytest.approx((128 / 150) / (64 / 50)),
        "vs_reference/top1": -0.25,
    }
    assert reference.training(train(25))["vs_reference/images_per_s"] == 2.0  # their newest by then is step 20
    assert reference.training(train(5)) == {}
    assert reference.training(train(31)) == {}


def test_accuracy_is_matched_by_samples_and_by_seconds(tmp_path: Path) -> None:
    records = [evaluation(10, 0.5, 40.0), evaluation(10, 0.1, 40.0, "val"), evaluation(20, 0.75, 80.0)]
    write(tmp_path / "har", train(20, seconds=80.0), *records)
    reference = Reference(tmp_path / "har")
    ours = evaluation(20, 0.8, 45.0, **{"averaged/top1": 0.9})
    assert reference.evaluation(ours) == {
        "vs_reference/main/top1": pytest.approx(0.05),
        "vs_reference/main/top1_at_equal_seconds": pytest.approx(0.3),
        "vs_reference/averaged/top1": pytest.approx(0.15),
        "vs_reference/averaged/top1_at_equal_seconds": pytest.approx(0.4),
    }
    early = evaluation(20, 0.8, 30.0)
    assert reference.evaluation(early) == {"vs_reference/main/top1": pytest.approx(0.05)}
    late = evaluation(30, 0.8, 500.0)
    assert reference.evaluation(late) == {}  # it may still get better by then
    (tmp_path / "har" / "summary.json").write_text("{}")
    assert reference.evaluation(late) == {"vs_reference/main/top1_at_equal_seconds": pytest.approx(0.05)}
    assert reference.evaluation(evaluation(20, 0.8, 45.0, "other")) == {}


def test_a_running_reference_is_followed(tmp_path: Path) -> None:
    folder = tmp_path / "har"
    write(folder, train(10), tail='{"kind": "train", "st')
    reference = Reference(folder)
    assert reference.training(train(20)) == {}
    write(folder, train(10), train(20, images_per_s=50.0), tail='{"kind": "tr')
    assert reference.training(train(20))["vs_reference/images_per_s"] == 2.0
    write(folder, train(10))  # resumed from its checkpoint
    assert reference.training(train(20)) == {}
    write(folder, train(10), train(20, images_per_s=25.0), {"kind": "bad", "step": 20, "id": 3})
    assert reference.training(train(20))["vs_reference/images_per_s"] == 4.0
    # Resumed and already longer than before: another file, which must not be read from the middle.
    fresh = tmp_path / "fresh"
    write(fresh, *(train(step, images_per_s=12.5) for step in range(1, 40)))
    (fresh / "metrics.jsonl").replace(folder / "metrics.jsonl")
    assert reference.training(train(20))["vs_reference/images_per_s"] == 8.0
    (folder / "metrics.jsonl").write_text('{"kind": broken}\n')
    assert reference.training(train(20)) == {}


def test_no_run_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"track.reference = '.*nothing' is no run"):
        Reference(tmp_path / "nothing")
