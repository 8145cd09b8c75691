"""The record of a run: metrics.jsonl on disk, a line on the console, and wandb as a view that may fail."""

import contextlib
import json
import math
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.config import Config
from pipeline.configfile import store
from pipeline.record.lines import Lines, say
from pipeline.record.view import View
from shards.errors import InputError
from shards.localfolder import replace
from shards.url import public

METRICS = "metrics.jsonl"
SUMMARY = "summary.json"


class Tracker:
    """Writes the record on rank 0; on other ranks it does nothing.

    Args:
        config: the run.
        leader: whether this process writes.
        total_steps: length of the run.
        start_step: first step to come; lines after it, of an earlier attempt, are cut off.
        identity: what makes attempts the same run, the manifest's fingerprint among it; wandb notes it.

    Raises:
        InputError: the run's folder cannot be made.
    """

    def __init__(
        self,
        config: Config,
        *,
        leader: bool,
        total_steps: int,
        start_step: int,
        identity: dict[str, Any] | None = None,
    ) -> None:
        self._leader, self._folder = leader, config.folder
        if not leader:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"run.dir: cannot write the run to {self._folder}: {error.strerror}") from None
        (self._folder / SUMMARY).unlink(missing_ok=True)  # it speaks of a finished run
        store(self._folder / "config.toml", config)
        path = self._folder / METRICS
        _truncate(path, start_step)
        self._lines = Lines(path)
        self._bar = (
            tqdm(total=total_steps, initial=start_step, desc=config.run.name, unit="step", dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )
        self._total_steps, self._start_step, self._began = total_steps, start_step, time.monotonic()
        self._name = config.run.name
        about = public(config.model_dump(mode="json")) | {"identity": identity or {}}
        self._wandb = View(self._folder, config.track, self._name, about, resumed=start_step > 0)

    def sync(self) -> None:
        """Wait until the record so far is on the disk."""
        if self._leader:
            self._lines.sync()

    def progress(self, step: int) -> None:
        """Move the live line to a finished step."""
        if self._leader and self._bar is not None:
            self._bar.update(step - self._bar.n)

    def log(self, kind: str, step: int, fields: dict[str, Any]) -> None:
        """Append one record; `step` counts finished optimizer steps."""
        if not self._leader:
            return
        record = {"kind": kind, "step": step, **fields, "time": time.time()}
        # A loss that diverged is null: NaN is no JSON, and other readers stumble over it.
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._lines.append(json.dumps(finite))
        self._wandb.log(record)
        text = _line(kind, record)
        if self._bar is None:
            left = f"  {self._left(step)} left" if kind == "train" and step > self._start_step else ""
            say(f"{self._name} {step}/{self._total_steps} {text}{left}")
        elif kind == "train":
            self._bar.set_postfix_str(text)
        else:
            with contextlib.suppress(OSError):
                self._bar.write(f"{self._name} {text}", file=sys.stderr)

    def _left(self, step: int) -> timedelta:
        """Time to the end at the pace of this attempt, evaluation and saving included."""
        pace = (time.monotonic() - self._began) / (step - self._start_step)
        return timedelta(seconds=round(pace * (self._total_steps - step)))

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json, whole or not at all, and close everything; raises InputError where it cannot."""
        if not self._leader:
            return
        temporary = self._folder / f".{SUMMARY}.tmp"
        try:
            temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
            temporary.replace(self._folder / SUMMARY)
        except OSError as error:
            raise InputError(
                f"{self._folder / SUMMARY} cannot be written ({error.strerror}); make room, and --resume auto writes it"
            ) from None
        self._wandb.finish(summary)
        self.close()

    def pause(self, step: int, reason: str, command: str | None) -> None:
        """Say why the run stops before its end and how to go on, and close everything."""
        if not self._leader:
            return
        on = "--resume auto goes on" if command is None else f"to go on:\n  {command}"
        say(f"{self._name}: stopped at step {step} of {self._total_steps} ({reason}); {on}")
        self._wandb.finish({})
        self.close()

    def close(self) -> None:
        """Let go of the file and the live line; the record so far stays."""
        if self._leader:
            if lost := self._lines.close():
                say(f"alasca: WARNING: {lost:,} lines of {METRICS} are lost")
            if self._bar is not None:
                self._bar.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Records of a run, in order; a torn last line is left out."""
    path = folder / METRICS
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def _truncate(path: Path, start_step: int) -> None:
    """Keep what happened up to the checkpoint; the rest happens again.

    Raises:
        InputError: the disk does not take it; what is there stays.
    """
    kept = [r for r in read_metrics(path.parent) if r["step"] <= start_step] if start_step else []
    try:
        replace(path, "".join(json.dumps(r) + "\n" for r in kept).encode(), path.parent)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}; make room, or set run.dir elsewhere") from None


def _line(kind: str, record: dict[str, Any]) -> str:
    """The figures a person watches."""
    if kind == "train":
        named = "  ".join(f"{k} {v:.3f}" for k, v in record.items() if k == "loss" or k.startswith("loss/"))
        text = (
            f"epoch {record['epoch']:.2f}  lr {record['lr']:.4f}  {named}  {record['images_per_s']:.0f} images/s"
            f"  waiting {record['data_wait']:.0%}  {record['memory_gb']:.1f} GB"
        )
        ratio = record.get("vs_reference/images_per_s")
        return text if ratio is None else f"{text}  ({ratio:.2f} x the reference's images/s)"
    if kind == "eval":
        averaged = f"  averaged {record['averaged/top1']:.2%}" if "averaged/top1" in record else ""
        text = f"epoch {record['epoch']:.0f}  {record['set']}: main {record['main/top1']:.2%}{averaged}"
        points = record.get("vs_reference/main/top1")
        return text if points is None else f"{text}  (main {100 * points:+.2f} points to the reference)"
    hidden = ("kind", "step", "time", "ids")  # ids may be thousands
    shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in record.items() if k not in hidden}
    return f"{kind}: " + "  ".join(f"{k} {v}" for k, v in shown.items())
