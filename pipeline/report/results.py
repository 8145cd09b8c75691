"""Finished runs of several methods -> one structure of plain figures; CSV, JSON and table rows of it."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.report import fair, labels
from pipeline.report.finished import HEADS, Run, read
from pipeline.report.measures import COSTS, Accuracy, Cost, Reach, accuracies, costs, differences, reaches
from pipeline.report.statistics import Spread, ratio
from shards.errors import InputError


@dataclass(frozen=True)
class Method:
    """All runs of one method.

    `compared_to` is the run of the reference method with the same settings (data, network, precision, processes,
    device, versions), against which cost ratios are like for like; where there is none, `unlike` names what differs
    from the reference. `best_ratio` is images/s of the fastest settings of this method (`best`) over the fastest of
    the reference (`best_other`): best against best. `evidence` is that of the last epoch, by name.
    """

    name: str
    runs: list[Run]
    accuracies: list[Accuracy]
    costs: list[Cost]
    reaches: list[Reach]
    evidence: dict[str, Spread]
    compared_to: str | None
    unlike: list[str]
    best: str | None
    best_other: str | None
    best_ratio: float | None


@dataclass(frozen=True)
class Results:
    """A comparison. `differences` holds configuration values as text: {dotted key: {method: value}}."""

    title: str
    made: str
    baseline: str
    reference: str | None
    target: float | None
    select_by: str | None
    sets: list[str]
    methods: list[Method]
    differences: dict[str, dict[str, str]]


def collect(
    title: str,
    methods: dict[str, list[Path]],
    *,
    baseline: str,
    reference: str | None,
    target: float | None,
    select_by: str | None = None,
) -> Results:
    """Read finished runs.

    Args:
        title: of the comparison.
        methods: run folders by method, one a seed; each holds config.toml, metrics.jsonl and summary.json.
        baseline: method from which accuracy differences are counted.
        reference: method to which costs are set in relation.
        target: accuracy (0 to 1) whose time is asked for.
        select_by: evaluation set, of clean validation data, that chooses a step; accuracy is reported on the others.

    Raises:
        InputError: `baseline` or `reference` is no method, a seed occurs twice, or a run lacks the set `select_by`.
    """
    for role, name in (("baseline", baseline), ("reference", reference)):
        if name is not None and name not in methods:
            raise InputError(f"{role} '{name}' is none of the methods: {', '.join(methods)}")
    found = {name: _runs(name, folders, select_by, target) for name, folders in methods.items()}
    sets = list(dict.fromkeys(name for runs in found.values() for run in runs for name in run.sets))
    return Results(
        title=title,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        baseline=baseline,
        reference=reference,
        target=target,
        select_by=select_by,
        sets=sets,
        methods=[_method(name, found, sets, baseline, reference) for name in found],
        differences=differences(found),
    )


def to_json(results: Results) -> str:
    """Everything; figures that are missing are null or absent, none is NaN."""
    return json.dumps(dataclasses.asdict(results), indent=1, allow_nan=False) + "\n"


def to_csv(results: Results) -> str:
    """One row per method, set and seed; what a run does not have is an empty cell. Accuracies 0 to 1.

    `..._ratio` are of the method's means, to those of the reference where that is like for like.
    """
    rows = []
    for method in results.methods:
        for run in method.runs:
            own = {"method": method.name, "seed": run.seed, **{name: getattr(run, name) for name in COSTS}}
            own |= {f"{c.name}_ratio": c.ratio for c in method.costs}
            own |= {f"evidence_{name}": value for name, value in labels.last_epoch(run.evidence).items()}
            own |= {"steps": run.steps, "world": run.world, "device": run.device, "folder": run.folder}
            own |= {"target": results.target, "versions": " ".join(f"{k}={v}" for k, v in run.versions.items())}
            for name in run.sets or [""]:
                heads: dict[str, object] = {}
                for head in heads_of(results):
                    chosen = run.chosen.get(f"{name}/{head}")
                    heads[f"{head}_last"] = run.last.get(f"{name}/{head}")
                    heads[f"{head}_chosen"] = chosen.accuracy if chosen else None
                    heads[f"{head}_chosen_step"] = chosen.step if chosen else None
                    seconds = run.reached.get(f"{name}/{head}", "")
                    heads[f"{head}_seconds_to_target"] = "not reached" if seconds is None else seconds
                rows.append({"set": name, **heads, **own})
    shown = heads_of(results)
    order = ["method", "set", "seed", *(f"{h}_{c}" for h in shown for c in ("last", "chosen", "chosen_step"))]
    order += [*COSTS, *(f"{name}_ratio" for name in COSTS), "target", *(f"{head}_seconds_to_target" for head in shown)]
    order += [f"evidence_{name}" for name in labels.HEADINGS if any(name in m.evidence for m in results.methods)]
    out = io.StringIO()
    writer = csv.DictWriter(out, [*order, "steps", "world", "device", "versions", "folder"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def rows(results: Results) -> list[list[str]]:
    """Header and one row a method, as text: accuracies in percent, then costs; mean +/- std over its seeds.

    Costs are followed by their ratio to the reference's. A column of which no method has a figure is left out.
    """
    asked: list[tuple[str, str, str, str]] = []
    for name in results.sets:
        asked += [(f"{name}: {head} %", name, head, "last") for head in HEADS]
        asked += [(f"{name}: {head} % chosen by {results.select_by}", name, head, "chosen") for head in HEADS]
    columns: dict[str, list[str]] = {}
    for header, *which in asked:
        columns[header] = [pm(accuracy(m, *which), 2, 100) for m in results.methods]
    for header, figure in (
        ("images/s", "images_per_s"),
        ("step s", "step_seconds"),
        ("peak memory GB", "memory_gb"),
        ("training s", "train_seconds"),
    ):
        columns[header] = [
            _cell(cost(m, figure).spread, cost(m, figure).ratio, m.name, results) for m in results.methods
        ]
    for name in results.sets if results.target is not None else ():
        for head in HEADS:
            found = [next((r for r in m.reaches if (r.set, r.head) == (name, head)), None) for m in results.methods]
            columns[f"{name}: {head} s to {results.target:.0%}"] = [
                "" if r is None else _cell(r.seconds, r.ratio, m.name, results) or "not reached"
                for m, r in zip(results.methods, found, strict=True)
            ]
    columns["seeds"] = [str(len(m.runs)) for m in results.methods]
    kept = {header: cells for header, cells in columns.items() if any(cells)}
    lines = zip(*kept.values(), strict=True)
    return [["method", *kept], *([m.name, *line] for m, line in zip(results.methods, lines, strict=True))]


def label_rows(results: Results) -> list[list[str]]:
    """As `rows`, of what became of right and wrong labels; empty where no true label is known."""
    return labels.rows({m.name: m.evidence for m in results.methods})


def heads_of(results: Results) -> list[str]:
    """Those of `HEADS` that a table has room for: that of two networks only where there are some."""
    pairs = any(key.endswith("/ensemble") for m in results.methods for run in m.runs for key in run.last)
    return [head for head in HEADS if pairs or head != "ensemble"]


def _cell(found: Spread | None, ratio: float | None, method: str, results: Results) -> str:
    """A cost, and in brackets how many times the reference's it is, like for like."""
    text = "" if found is None else pm(found, digits(found.mean))
    return f"{text} ({ratio:.2f}x)" if text and ratio is not None and method != results.reference else text


def digits(value: float) -> int:
    """Decimals that leave two or three significant figures."""
    return 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 4


def pm(found: Spread | None, decimals: int, scale: float = 1) -> str:
    """`mean +/- std` as text; only the mean with one seed; nothing for nothing."""
    if found is None:
        return ""
    return f"{scale * found.mean:.{decimals}f}" + (
        "" if found.std is None else f" +/- {scale * found.std:.{decimals}f}"
    )


def accuracy(method: Method, name: str, head: str, choice: str) -> Spread | None:
    """Of one set, head ("main", "averaged", "ensemble") and choice ("last", "chosen")."""
    return next((a.spread for a in method.accuracies if (a.set, a.head, a.choice) == (name, head, choice)), None)


def cost(method: Method, name: str) -> Cost:
    """By its name in `COSTS`."""
    return next(c for c in method.costs if c.name == name)


def _runs(method: str, folders: Sequence[Path], select_by: str | None, target: float | None) -> list[Run]:
    runs = sorted((read(folder, target=target, select_by=select_by) for folder in folders), key=lambda run: run.seed)
    seeds = [run.seed for run in runs]
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"method '{method}' needs runs of different seeds, got seeds {seeds}")
    return runs


def _method(name: str, found: dict[str, list[Run]], sets: list[str], baseline: str, reference: str | None) -> Method:
    runs = found[name]
    other = fair.like(name, reference, found) if reference else None
    same = found[other] if other else []
    best, best_other = (fair.fastest(name, found), fair.fastest(reference, found)) if reference else (None, None)
    return Method(
        name=name,
        runs=runs,
        accuracies=accuracies(runs, found[baseline], found[reference] if reference else [], sets),
        costs=costs(runs, same),
        reaches=reaches(runs, same, sets),
        evidence=labels.spreads(runs),
        compared_to=other,
        unlike=fair.unlike(runs, found[reference]) if reference and other is None else [],
        best=best,
        best_other=best_other,
        best_ratio=_speed_ratio(found[best], found[best_other]) if best and best_other else None,
    )


def _speed_ratio(runs: list[Run], others: list[Run]) -> float | None:
    return ratio(fair.figure(runs, COSTS[0]), fair.figure(others, COSTS[0]))
