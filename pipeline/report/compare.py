"""Several methods on the same batches: train what is missing, reuse what is finished, write table and page."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline import configfile
from pipeline.config import NAME, Config
from pipeline.data.selection import select
from pipeline.record.track import METRICS, SUMMARY
from pipeline.report import group, page, results
from pipeline.section import Count, Fraction, Section
from pipeline.train.identity import identity, refuse_difference
from pipeline.train.inputs import Inputs
from shards.errors import InputError
from shards.manifest import Manifest


class Comparison(Section):
    """The file: a base configuration, where runs go, processes a run, and per method what it changes.

    `baseline` (the first method) is what accuracies are compared to, `reference` the costly run to which speed and time
    are set in relation. `equal_time` adds, for every method but the reference, a run whose whole schedule is stretched
    to the reference's training seconds. `target` is an accuracy (0 to 1) whose time is reported; `select_by` a clean
    validation set that chooses the step reported beside the last.
    """

    config: str
    dir: str
    title: str | None = None
    ranks: Count = 1
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    baseline: str | None = None
    reference: str | None = None
    equal_time: bool = False
    target: Fraction | None = None
    select_by: str | None = None
    methods: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]

    @field_validator("seeds", mode="before")
    @classmethod
    def _a_list(cls, given: Any) -> Any:
        if not isinstance(given, list):
            raise ValueError(f"must be a list, such as [0, 1, 2], not {given!r}")
        return given

    @field_validator("methods", mode="before")
    @classmethod
    def _names_of_folders(cls, given: Any) -> Any:
        for name in given if isinstance(given, dict) else ():
            if not re.fullmatch(NAME, name):
                raise ValueError(
                    f"'{name}' names a method: letters, digits and, not first, '.', '_' and '-' may be in it"
                )
        return given

    @model_validator(mode="after")
    def _named_methods_exist(self) -> Self:
        for role, name in (("baseline", self.baseline), ("reference", self.reference)):
            if name is not None and name not in self.methods:
                raise ValueError(f"{role} '{name}' is none of the methods: {', '.join(self.methods)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} name one twice")
        if self.equal_time and self.reference is None:
            raise ValueError("equal_time needs a reference, whose time the others get")
        return self


@dataclass(frozen=True)
class Planned:
    """One run of the comparison."""

    method: str
    seed: int
    config: Config

    @property
    def name(self) -> str:
        """Of the run."""
        return self.config.run.name


def compare(path: str) -> int:
    """Train every method with every seed; then print the table and write comparison.json, .csv and report.html.

    Runs of one seed share data order, augmentation and the backbone's initial weights. The reference is trained first,
    so that the others can follow it as they go (`vs_reference/...`). A run that was cut off goes on.

    Returns:
        0, or 1 if a run failed; the others are still trained.

    Raises:
        InputError: a bad file, a method that cannot be trained as configured, or a finished run of another
            configuration in the way. Nothing was written then.
    """
    comparison = _load(path)
    planned = [_plan(comparison, path, method, seed) for method in _order(comparison) for seed in comparison.seeds]
    for run in planned:
        if comparison.select_by not in (None, *run.config.eval.sets):
            known = ", ".join(run.config.eval.sets) or "none"
            raise InputError(f"{path}: select_by '{comparison.select_by}' is no evaluation set of {run.name}: {known}")
    finished = {run.name for run in planned if _finished(run.config)}
    _open_inputs(comparison, path, [run for run in planned if run.name not in finished])
    try:
        Path(comparison.dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: dir = '{comparison.dir}' cannot be written: {error.strerror}") from None
    whole: list[Planned] = []
    failed: list[Planned] = []
    for run in planned:
        (whole if _train(comparison, run, finished) else failed).append(run)
    for run in [run for run in whole if comparison.equal_time and run.method != comparison.reference]:
        if not any(other.method == comparison.reference and other.seed == run.seed for other in whole):
            continue
        stretched = _stretched(comparison, path, run)
        if stretched is None:
            print(f"== {run.name}: no epoch more would fit into the reference's time", flush=True)
            continue
        try:
            done = _train(comparison, stretched, {stretched.name} if _finished(stretched.config) else set())
        except InputError as error:  # another run is in the way, known only now; those that were trained count
            print(f"alasca: {error}", file=sys.stderr)
            done = False
        (whole if done else failed).append(stretched)
    _report(comparison, path, whole)
    if failed:
        names = ", ".join(run.name for run in failed)
        print(f"alasca: failed: {names}; the same command goes on with them", file=sys.stderr)
    return 1 if failed else 0


def _report(comparison: Comparison, path: str, runs: list[Planned]) -> None:
    """Table on the console; everything in files. Methods of which no run finished are left out."""
    order = [*comparison.methods, *(run.method for run in runs)]
    folders = {name: [run.config.folder for run in runs if run.method == name] for name in dict.fromkeys(order)}
    folders = {name: found for name, found in folders.items() if found}
    if not folders:
        return
    baseline = comparison.baseline or next(iter(comparison.methods))
    for name in {baseline, comparison.reference or baseline} - set(folders):
        print(f"alasca: no run of '{name}' finished, so nothing is set in relation to it", file=sys.stderr)
    found = results.collect(
        comparison.title or Path(path).stem,
        folders,
        baseline=baseline if baseline in folders else next(iter(folders)),
        reference=comparison.reference if comparison.reference in folders else None,
        target=comparison.target,
        select_by=comparison.select_by,
    )
    for table in filter(None, (results.rows(found), results.label_rows(found))):
        print("\n" + _markdown(table))
    folder = Path(comparison.dir)
    for name, text in (
        ("comparison.json", results.to_json(found)),
        ("comparison.csv", results.to_csv(found)),
        ("report.html", page.render(found)),
    ):
        temporary = folder / f".{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / name)
    group.show(found, folder, folder / "report.html", runs[0].config.track)
    print(f"\n{folder / 'report.html'} shows it all; comparison.json and comparison.csv beside it hold the figures")


def _markdown(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    cells = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _load(path: str) -> Comparison:
    try:
        return Comparison.model_validate(configfile.read_toml(path))
    except ValidationError as error:
        raise InputError(f"{path}: {configfile.explain(error, Comparison)}") from None


def _order(comparison: Comparison) -> list[str]:
    """The reference first."""
    return sorted(comparison.methods, key=lambda method: method != comparison.reference)


def _plan(comparison: Comparison, path: str, method: str, seed: int) -> Planned:
    tables = configfile.read_toml(comparison.config)
    configfile.merge(tables, comparison.methods[method])
    track = {"group": comparison.title or Path(path).stem}
    if comparison.reference not in (None, method):
        track["reference"] = str(Path(comparison.dir) / f"{comparison.reference}-seed{seed}")
    own = {"name": f"{method}-seed{seed}", "dir": comparison.dir, "seed": seed, "resume": "auto"}
    configfile.merge(tables, {"run": own, "track": track})
    where = f"{path}, method '{method}' over {comparison.config}"
    return Planned(method, seed, configfile.parse(tables, name=method, where=where))


def _open_inputs(comparison: Comparison, path: str, runs: list[Planned]) -> None:
    """Open what each method is trained on, as its processes will: a mistake in the last one costs no hours."""
    for run in {run.method: run for run in runs}.values():
        try:
            Inputs.open(_alone(run.config), comparison.ranks)
        except InputError as error:
            raise InputError(f"{path}, method '{run.method}': {error}") from None


def _alone(config: Config) -> Config:
    """The same without the run that it follows."""
    return config.model_copy(update={"track": config.track.model_copy(update={"reference": None})})


def _stretched(comparison: Comparison, path: str, run: Planned) -> Planned | None:
    """The same run with its whole schedule made as long as the reference took; None if that adds no epoch."""
    reference = run.config.folder.with_name(f"{comparison.reference}-seed{run.seed}")
    factor = _summary(reference)["train_seconds"] / _summary(run.config.folder)["train_seconds"]
    optim = run.config.optim
    epochs = round(optim.epochs * factor)
    if epochs <= optim.epochs:
        return None
    factor = epochs / optim.epochs
    tables = run.config.to_tables()
    longer: dict[str, Any] = {
        "epochs": epochs,
        "warmup_epochs": optim.warmup_epochs * factor,
        "milestones": [milestone * factor for milestone in optim.milestones],
    }
    name = f"{run.method}-equal-time-{epochs}-epochs-seed{run.seed}"
    configfile.merge(tables, {"optim": longer, "run": {"name": name}})
    method = run.config.method
    if method.alasca.warmup_epochs is not None:
        tables["method"]["alasca"]["warmup_epochs"] = method.alasca.warmup_epochs * factor
    for key, value in method.pair_options.items():
        if key.endswith("_epochs"):
            tables["method"][method.pair_section][key] = (
                round(value * factor) if isinstance(value, int) else value * factor
            )
    return Planned(f"{run.method}, equal time", run.seed, configfile.parse(tables, name=run.method, where=path))


def _finished(run: Config) -> bool:
    summary = run.folder / SUMMARY
    if not summary.exists():
        return False
    manifest = Manifest.load(run.data.train, run.data.fetched)
    asked = identity(run, manifest, select(manifest, run.data.subset, run.data.relabel))
    then = _summary(run.folder)
    refuse_difference(then["identity"], asked, str(run.folder), instead="name another dir")
    pretrained = configfile.load(run.folder / "config.toml").model.pretrained
    sets = {name: Manifest.load(chosen.data, run.data.fetched).fingerprint for name, chosen in run.eval.sets.items()}
    for key, was, now in (
        ("model.pretrained", pretrained, run.model.pretrained),
        ("evaluation sets", then.get("set_fingerprints"), sets),
    ):
        if was != now:
            raise InputError(f"{run.folder} is of another run: {key} ({was} there, {now} here). Name another dir")
    return True


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / SUMMARY
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): remove it, and the run is finished again") from None
    return summary


def _train(comparison: Comparison, run: Planned, finished: set[str]) -> bool:
    """Whether the run is finished now."""
    folder = run.config.folder
    if run.name in finished:
        print(f"== {run.name}: finished before, reused from {folder}", flush=True)
        return True
    print(f"\n== {run.name}: training in {folder} with {comparison.ranks} processes", flush=True)
    config = run.config
    if config.track.reference is not None and not (Path(config.track.reference) / METRICS).exists():
        # The reference failed before its first line; that is no reason for this run to fail.
        config = _alone(config)
    # Beside the run's folder, not in it: what is in there belongs to the run, which may refuse this configuration.
    file = folder.with_name(f"{run.name}.toml")
    file.parent.mkdir(parents=True, exist_ok=True)
    configfile.store(file, config)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(comparison.ranks), "--module", "pipeline", "train", str(file)]
    threads = max(1, len(os.sched_getaffinity(0)) // comparison.ranks)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    process = subprocess.Popen(command, env=environment)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        process.wait()  # the run got it too, and saves
        raise
    return status == 0 and (folder / SUMMARY).exists()
