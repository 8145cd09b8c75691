"""The record of a run: metrics.jsonl on disk, a line on the console, and wandb as a view that may fail."""

import contextlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.config import Config
from shards.errors import InputError

METRICS = "metrics.jsonl"
SUMMARY = "summary.json"

_WANDB_PATIENCE_S = 20.0


class Tracker:
    """Writes the record on rank 0; on other ranks it does nothing.

    Args:
        config: the run.
        leader: whether this process writes.
        total_steps: length of the run.
        start_step: first step to come; lines after it, of an earlier attempt, are cut off.

    Raises:
        InputError: the run's folder cannot be made.
    """

    def __init__(self, config: Config, *, leader: bool, total_steps: int, start_step: int) -> None:
        self._leader, self._folder = leader, config.folder
        if not leader:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"run.dir: cannot write the run to {self._folder}: {error.strerror}") from None
        (self._folder / SUMMARY).unlink(missing_ok=True)  # it speaks of a finished run
        (self._folder / "config.toml").write_text(config.to_toml(), encoding="utf-8")
        path = self._folder / METRICS
        _truncate(path, start_step)
        self._file = path.open("a", encoding="utf-8")
        self._bar = (
            tqdm(total=total_steps, initial=start_step, desc=config.run.name, unit="step", dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )
        self._total_steps = total_steps
        self._name = config.run.name
        self._wandb = _View(config, self._folder)

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
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        self._wandb.log(record)
        text = _line(kind, record)
        if self._bar is None:
            print(f"{self._name} {step}/{self._total_steps} {text}", file=sys.stderr, flush=True)
        elif kind == "train":
            self._bar.set_postfix_str(text)
        else:
            self._bar.write(f"{self._name} {text}", file=sys.stderr)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json, whole or not at all, and close everything."""
        if not self._leader:
            return
        temporary = self._folder / f".{SUMMARY}.tmp"
        temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self._folder / SUMMARY)
        self._wandb.finish(summary)
        self.close()

    def pause(self, step: int) -> None:
        """Close everything before the end of the run, and say how to go on."""
        if not self._leader:
            return
        self._wandb.finish({})
        self.close()
        print(f"{self._name}: stopped at step {step} of {self._total_steps}; --resume auto goes on", file=sys.stderr)

    def close(self) -> None:
        """Let go of the file and the live line; the record so far stays."""
        if self._leader:
            self._file.close()
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
    """Keep what happened up to the checkpoint; the rest happens again."""
    kept = [r for r in read_metrics(path.parent) if r["step"] <= start_step] if start_step else []
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
    temporary.replace(path)


def _line(kind: str, record: dict[str, Any]) -> str:
    """The figures a person watches."""
    if kind == "train":
        named = "  ".join(f"{k} {v:.3f}" for k, v in record.items() if k == "loss" or k.startswith("loss/"))
        return (
            f"epoch {record['epoch']:.2f}  lr {record['lr']:.4f}  {named}  {record['images_per_s']:.0f} images/s"
            f"  waiting {record['data_wait']:.0%}  {record['memory_gb']:.1f} GB"
        )
    if kind == "eval":
        averaged = f"  averaged {record['averaged/top1']:.2%}" if "averaged/top1" in record else ""
        return f"epoch {record['epoch']:.0f}  {record['set']}: main {record['main/top1']:.2%}{averaged}"
    return f"{kind}: " + "  ".join(f"{k} {v}" for k, v in record.items() if k not in ("kind", "step", "time"))


class _View:
    """wandb, kept at arm's length: any failure is one warning, after which it is left alone."""

    def __init__(self, config: Config, folder: Path) -> None:
        self._run: Any = None
        if config.track.wandb == "disabled":
            return
        with self._guard():
            import wandb

            self._run = wandb.init(
                dir=str(folder),
                mode=config.track.wandb,
                project=config.track.project,
                group=config.track.group,
                name=config.run.name,
                config=config.model_dump(),
                settings=wandb.Settings(init_timeout=_WANDB_PATIENCE_S, silent=True, console="off"),
            )
            # wandb drops steps that go back; ours may, after a resume.
            self._run.define_metric("*", step_metric="step")

    def log(self, record: dict[str, Any]) -> None:
        if self._run is None:
            return
        prefix = record["kind"] + (f"/{record['set']}" if "set" in record else "")
        figures = {f"{prefix}/{k}": v for k, v in record.items() if isinstance(v, int | float) and k != "step"}
        with self._guard():
            self._run.log({**figures, "step": record["step"]})

    def finish(self, summary: dict[str, Any]) -> None:
        if self._run is None:
            return
        with self._guard():
            self._run.summary.update(summary)
            self._run.finish()

    @contextlib.contextmanager
    def _guard(self) -> Any:
        try:
            yield
        except Exception as error:
            self._run = None
            with contextlib.suppress(Exception):
                sys.modules["wandb"].teardown()  # else it fails once more, with a traceback, when Python exits
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(f"warning: wandb is out ({reason}); the run goes on, {METRICS} has everything", file=sys.stderr)
