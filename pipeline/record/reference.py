"""Another run, finished or still running, to whose figures a run's own are set in relation as it goes."""

import json
import os
from pathlib import Path
from typing import Any

from pipeline.record.track import METRICS, SUMMARY
from shards.errors import InputError

_HEADS = ("main/top1", "averaged/top1")


class Reference:
    """Reads the other run's metrics.jsonl, again and again as it grows.

    Args:
        folder: the other run's folder.

    Raises:
        InputError: there is no run.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / METRICS
        if not self._path.exists():
            raise InputError(f"track.reference = '{folder}' is no run: it has no {METRICS}")
        self._file = 0
        self._read = 0
        self._seconds = 0.0
        self._training: list[dict[str, Any]] = []
        self._evaluations: list[dict[str, Any]] = []

    def training(self, figures: dict[str, Any]) -> dict[str, float]:
        """Set a `train` record in relation, matched by samples seen.

        Returns:
            `vs_reference/images_per_s`, `.../step_seconds`, `.../memory_gb`: ours over theirs; `.../top1`: ours minus
            theirs; nothing as long as the other run has not come so far.
        """
        theirs = self._at("samples", figures["samples"], self._refreshed()._training)
        if theirs is None:
            return {}
        found = {name: figures[name] / theirs[name] for name in ("images_per_s", "memory_gb") if theirs[name]}
        found["step_seconds"] = _step_seconds(figures) / _step_seconds(theirs)
        if theirs["top1"] is not None:  # it had a step that counts
            found["top1"] = figures["top1"] - theirs["top1"]
        return _named(found)

    def evaluation(self, figures: dict[str, Any]) -> dict[str, float]:
        """Set an `eval` record in relation to the other run's main head on the same set.

        Returns:
            Accuracy of ours minus theirs (0 to 1) by head: `vs_reference/main/top1` at equal samples,
            `vs_reference/main/top1_at_equal_seconds` at equal training time, both against the other run's newest
            evaluation by then; absent as long as it has not come so far.
        """
        same_set = [r for r in self._refreshed()._evaluations if r["set"] == figures["set"]]
        by_samples = self._at("samples", figures["samples"], same_set)
        known = self._seconds >= figures["train_seconds"] or self._finished()
        by_seconds = self._newest("train_seconds", figures["train_seconds"], same_set) if known else None
        found = {}
        for head in (h for h in _HEADS if h in figures):
            if by_samples is not None:
                found[head] = figures[head] - by_samples["main/top1"]
            if by_seconds is not None:
                found[f"{head}_at_equal_seconds"] = figures[head] - by_seconds["main/top1"]
        return _named(found)

    def _at(self, key: str, value: float, records: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The newest record up to a value, once the other run has reached that value."""
        return self._newest(key, value, records) if records and records[-1][key] >= value else None

    def _newest(self, key: str, value: float, records: list[dict[str, Any]]) -> dict[str, Any] | None:
        before = [r for r in records if r[key] <= value]
        return before[-1] if before else None

    def _finished(self) -> bool:
        return (self._path.parent / SUMMARY).exists()

    def _refreshed(self) -> "Reference":
        """Take up new lines. A file that cannot be read now is looked at again the next time: this is only a view."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._file or status.st_size < self._read:  # it was resumed, and cut back
                    self._file, self._read, self._seconds = status.st_ino, 0, 0.0
                    self._training, self._evaluations = [], []
                file.seek(self._read)
                whole, newline, _ = file.read().rpartition(b"\n")  # its last line may still be in the making
            for line in whole.splitlines():
                self._take(json.loads(line))
            self._read += len(whole) + len(newline)
        except (OSError, ValueError):
            self._file = 0
        return self

    def _take(self, record: dict[str, Any]) -> None:
        if record["kind"] == "train":
            self._training.append(record)
            self._seconds += record["seconds"]
        elif record["kind"] == "eval":
            self._evaluations.append(record)


def _step_seconds(record: dict[str, Any]) -> float:
    return float(record["samples"] / record["step"] / record["images_per_s"])


def _named(found: dict[str, float]) -> dict[str, float]:
    return {f"vs_reference/{name}": value for name, value in found.items()}
