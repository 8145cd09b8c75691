"""Several methods on the same batches: train what is missing, reuse what is finished, print one table."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from statistics import mean, stdev
from typing import Annotated, Any

from pydantic import Field, ValidationError

from pipeline import configfile
from pipeline.config import Config, Count, Section
from pipeline.record.track import SUMMARY
from pipeline.train.identity import identity, refuse_difference
from shards.errors import InputError
from shards.manifest import Manifest


class Comparison(Section):
    """The file: a base configuration, where runs go, processes a run, and per method what it changes."""

    config: str
    dir: str
    ranks: Count = 1
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    methods: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]


def compare(path: str) -> int:
    """Train every method with every seed, then print the table.

    Runs of one seed share data order, augmentation and the backbone's initial weights. A run that was cut off goes on.

    Returns:
        0, or 1 if a run failed; the others are still trained.

    Raises:
        InputError: a bad file, or a finished run of another configuration in the way.
    """
    comparison = _load(path)
    planned = list(_runs(comparison, path))
    missing = [run for _, run in planned if not _finished(run)]
    failed = []
    for run in missing:
        print(f"\n== {run.run.name}: training in {run.folder} with {comparison.ranks} processes", flush=True)
        if _launch(comparison, run) != 0:
            failed.append(run.run.name)
    for run in (run for _, run in planned if run not in missing):
        print(f"== {run.run.name}: finished before, reused from {run.folder}", flush=True)
    print("\n" + table([(method, _summary(run)) for method, run in planned if run.run.name not in failed]))
    if failed:
        print(f"alasca: failed: {', '.join(failed)}; the same command goes on with them", file=sys.stderr)
    return 1 if failed else 0


def table(results: list[tuple[str, dict[str, Any]]]) -> str:
    """Aligned Markdown: a row a method, mean +/- standard deviation over its seeds.

    Accuracies are of the last epoch, in percent: of the main head, and of the average of main and last auxiliary
    head where there is one. images/s is the median over the run's windows, memory the peak of the largest process.
    """
    sets = list(dict.fromkeys(name for _, summary in results for name in summary["sets"]))
    header = ["method", *(f"{name}: {head} %" for name in sets for head in ("main", "averaged"))]
    header += ["images/s", "peak memory GB", "training s", "seeds"]
    rows = [header]
    for method in dict.fromkeys(method for method, _ in results):
        mine = [summary for name, summary in results if name == method]
        cells = [
            _spread([100 * s["sets"][name][f"{head}/top1"] for s in mine if f"{head}/top1" in s["sets"][name]], 2)
            for name in sets
            for head in ("main", "averaged")
        ]
        figures = [_spread([s[key] for s in mine], d) for key, d in (("images_per_s", 0), ("memory_gb", 2))]
        rows.append([method, *cells, *figures, _spread([s["train_seconds"] for s in mine], 0), str(len(mine))])
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _load(path: str) -> Comparison:
    try:
        return Comparison.model_validate(configfile.read_toml(path))
    except ValidationError as error:
        raise InputError(f"{path}: {configfile.explain(error, Comparison)}") from None


def _runs(comparison: Comparison, path: str) -> Iterator[tuple[str, Config]]:
    for method, changes in comparison.methods.items():
        for seed in comparison.seeds:
            tables = configfile.read_toml(comparison.config)
            configfile.merge(tables, changes)
            own = {"name": f"{method}-seed{seed}", "dir": comparison.dir, "seed": seed, "resume": "auto"}
            configfile.merge(tables, {"run": own})
            where = f"{path}, method '{method}' over {comparison.config}"
            yield method, configfile.parse(tables, name=method, where=where)


def _finished(run: Config) -> bool:
    summary = run.folder / SUMMARY
    if not summary.exists():
        return False
    then = json.loads(summary.read_text(encoding="utf-8"))["identity"]
    refuse_difference(then, identity(run, Manifest.load(run.data.train)), str(run.folder))
    return True


def _summary(run: Config) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run.folder / SUMMARY).read_text(encoding="utf-8"))
    return summary


def _launch(comparison: Comparison, run: Config) -> int:
    """Exit status of one run under torchrun."""
    # Beside the run's folder, not in it: what is in there belongs to the run, which may refuse this configuration.
    file = run.folder.with_name(f"{run.run.name}.toml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(run.to_toml(), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(comparison.ranks), "--module", "pipeline", "train", str(file)]
    threads = max(1, len(os.sched_getaffinity(0)) // comparison.ranks)
    return subprocess.run(command, env={"OMP_NUM_THREADS": str(threads), **os.environ}, check=False).returncode


def _spread(values: list[float], digits: int) -> str:
    if not values:
        return ""
    spread = f" +/- {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"
