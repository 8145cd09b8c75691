"""What the record says of a whole run, earlier attempts included."""

from pathlib import Path
from statistics import median
from typing import Any

from pipeline.record.track import METRICS, read_metrics
from shards.errors import InputError


def train_seconds(folder: Path) -> float:
    """Seconds of training so far, without evaluation and saving."""
    return float(sum(r["seconds"] for r in read_metrics(folder) if r["kind"] == "train"))


def evaluated(folder: Path, step: int) -> dict[str, float]:
    """Accuracy of the main head on each set whose evaluation after `step` steps is in the record."""
    return {r["set"]: r["main/top1"] for r in read_metrics(folder) if r["kind"] == "eval" and r["step"] == step}


def summarise(folder: Path, total_steps: int) -> dict[str, Any]:
    """Figures of a finished run, from its metrics.jsonl.

    `sets` are the accuracies (0 to 1) and losses after the last step, by set; `images_per_s` and `data_wait` medians
    over the run's windows; `memory_gb` the peak of any rank; `train_seconds` leaves out evaluation and saving.

    Raises:
        InputError: the record has no line of training.
    """
    records = read_metrics(folder)
    training = [r for r in records if r["kind"] == "train"]
    if not training:
        raise InputError(
            f"{folder / METRICS} has no line of training, so there is nothing to sum up: was its disk full? The weights"
            f" are in {folder / 'checkpoints'}"
        )
    final = {r["set"]: r for r in records if r["kind"] == "eval" and r["step"] == total_steps}
    return {
        "sets": {name: _accuracies(record) for name, record in final.items()},
        "images_per_s": median(r["images_per_s"] for r in training),
        "data_wait": median(r["data_wait"] for r in training),
        "memory_gb": max(r["memory_gb"] for r in training),
        "train_seconds": train_seconds(folder),
        "bad_images": sum(r["kind"] == "bad" for r in records),
        "nonfinite_steps": sum(r["kind"] == "nonfinite" for r in records),
    }


def _accuracies(record: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in record.items() if k == "loss" or ("/top" in k and not k.startswith("vs_reference/"))}
