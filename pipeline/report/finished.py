"""A finished run, read back from its folder: its settings, its figures, its curves."""

import json
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.methodconfig import Method
from pipeline.record.track import SUMMARY, read_metrics
from shards.errors import InputError
from shards.url import public

HEADS = ("main", "averaged", "ensemble")  # the last of two networks

_OWN = {"run.name", "run.seed", "run.dir", "run.resume"}
_CURVE_POINTS = 300
_EVIDENCE = "evidence/"


@dataclass(frozen=True)
class Evaluation:
    """Top-1 accuracies (0 to 1) on one set after `step`; `seconds` of training (no evaluation, no saving) so far."""

    step: int
    epoch: float
    seconds: float
    set: str
    main: float | None
    averaged: float | None
    ensemble: float | None


@dataclass(frozen=True)
class Loss:
    """Mean training loss of a stretch that ends at `step`; None where it was not finite."""

    step: int
    epoch: float
    seconds: float
    loss: float | None


@dataclass(frozen=True)
class Norms:
    """Norms of Jacobians after `step`, estimated from `images` images: "input", "hidden/stage1", ..."""

    step: int
    epoch: float
    images: float
    values: dict[str, float | None]


@dataclass(frozen=True)
class Evidence:
    """Shares (0 to 1) of a stretch that ends at `step`, on labels whose truth is known; None: of no sample.

    `values` are by name, those of `pipeline.method.evidence` and "given_top1", the accuracy by the given labels.
    """

    step: int
    epoch: float
    values: dict[str, float | None]


@dataclass(frozen=True)
class Choice:
    """The step a validation set chose, and the accuracy there on another set."""

    step: int
    accuracy: float


@dataclass(frozen=True)
class Run:
    """One run. Accuracies, choices and times to the target are by "set/head"; a time is None if it was not reached.

    `step_seconds` is the global batch over `images_per_s`, itself the median over the run's windows; `memory_gb` the
    peak of any rank, in 10^9 bytes. `config` holds the values that may tell methods apart, as text by dotted key.
    """

    seed: int
    folder: str
    steps: int
    epochs: float
    world: int
    device: str
    versions: dict[str, str]
    images_per_s: float
    step_seconds: float
    data_wait: float
    memory_gb: float
    train_seconds: float
    bad_images: int
    sets: list[str]
    last: dict[str, float]
    chosen: dict[str, Choice]
    reached: dict[str, float | None]
    evaluations: list[Evaluation]
    losses: list[Loss]
    norms: list[Norms]
    evidence: list[Evidence]
    config: dict[str, str]


def read(folder: Path, *, target: float | None = None, select_by: str | None = None) -> Run:
    """One finished run.

    Raises:
        InputError: it was not evaluated on `select_by`.
    """
    summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    tables = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    records = read_metrics(folder)
    evaluations, losses = _curves(records)
    sets = list(summary["sets"])
    if select_by is not None and not any(e.set == select_by for e in evaluations):
        raise InputError(f"{folder} has no evaluations on '{select_by}', which is to choose; it has {', '.join(sets)}")
    keys = [f"{name}/{head}" for name in sets for head in HEADS]
    last = {key: summary["sets"][key.rpartition("/")[0]].get(f"{key.rpartition('/')[2]}/top1") for key in keys}
    present = {key: value for key, value in last.items() if value is not None}
    choices = {key: _chosen(evaluations, select_by, key) for key in present}
    return Run(
        seed=tables["run"]["seed"],
        folder=str(folder),
        steps=summary["steps"],
        epochs=summary["epochs"],
        world=summary["world"],
        device=summary["device"],
        versions=summary["versions"],
        images_per_s=summary["images_per_s"],
        step_seconds=summary["samples"] / summary["steps"] / summary["images_per_s"],
        data_wait=summary["data_wait"],
        memory_gb=summary["memory_gb"],
        train_seconds=summary["train_seconds"],
        bad_images=summary["bad_images"],
        sets=sets,
        last=present,
        chosen={key: choice for key, choice in choices.items() if choice is not None},
        reached={} if target is None else {key: _time_to(evaluations, key, target) for key in present},
        evaluations=evaluations,
        losses=_thinned(losses),
        norms=_norms(records),
        evidence=_evidence(records),
        config={key: str(value) for key, value in _flat("", public(_effective(tables))).items() if key not in _OWN},
    )


def _curves(records: list[dict[str, Any]]) -> tuple[list[Evaluation], list[Loss]]:
    """Every evaluation and window. A window closes before an evaluation, so the seconds are exact."""
    evaluations, losses, seconds = [], [], 0.0
    for r in records:
        if r["kind"] == "train":
            seconds += r["seconds"]
            losses.append(Loss(r["step"], r["epoch"], seconds, r["loss"]))
        elif r["kind"] == "eval":
            heads = (r.get(f"{head}/top1") for head in HEADS)
            evaluations.append(Evaluation(r["step"], r["epoch"], seconds, r["set"], *heads))
    return evaluations, losses


def _thinned(losses: list[Loss]) -> list[Loss]:
    """Means over equal numbers of neighbours, weighted by steps: a long run has more windows than a chart has dots."""
    size = math.ceil(len(losses) / _CURVE_POINTS) or 1
    if size == 1:
        return losses
    starts = dict(zip((w.step for w in losses), [0, *(w.step for w in losses[:-1])], strict=True))
    thin = []
    for first in range(0, len(losses), size):
        group = losses[first : first + size]
        steps = sum(w.step - starts[w.step] for w in group)
        finite = [w.loss * (w.step - starts[w.step]) for w in group if w.loss is not None]
        mean = sum(finite) / steps if len(finite) == len(group) else None
        thin.append(Loss(group[-1].step, group[-1].epoch, group[-1].seconds, mean))
    return thin


def _norms(records: list[dict[str, Any]]) -> list[Norms]:
    """Root mean squares over equal numbers of neighbouring estimates, as in `_thinned`."""
    found = [r for r in records if r["kind"] == "norms"]
    size = math.ceil(len(found) / _CURVE_POINTS) or 1
    thin = []
    for first in range(0, len(found), size):
        group = found[first : first + size]
        last, values = group[-1], {}
        for name in last:
            if name == "input" or name.startswith("hidden/"):
                finite = [r[name] ** 2 for r in group if r[name] is not None]
                values[name] = math.sqrt(fmean(finite)) if len(finite) == len(group) else None
        thin.append(Norms(last["step"], last["epoch"], last["images"], values))
    return thin


def _evidence(records: list[dict[str, Any]]) -> list[Evidence]:
    """Means over equal numbers of neighbouring windows, as in `_thinned`, of those that had such samples."""
    found = [r for r in records if r["kind"] == "train" and any(name.startswith(_EVIDENCE) for name in r)]
    size = math.ceil(len(found) / _CURVE_POINTS) or 1
    thin = []
    for first in range(0, len(found), size):
        group = found[first : first + size]
        values = {}
        for name in ("top1", *(name for name in group[-1] if name.startswith(_EVIDENCE))):
            known = [r[name] for r in group if r[name] is not None]
            own = "given_top1" if name == "top1" else name.removeprefix(_EVIDENCE)
            values[own] = fmean(known) if known else None
        thin.append(Evidence(group[-1]["step"], group[-1]["epoch"], values))
    return thin


def _accuracies(evaluations: list[Evaluation], key: str) -> list[tuple[Evaluation, float]]:
    """Evaluations of one "set/head" that have a value, in order."""
    name, _, head = key.rpartition("/")
    values = [(e, getattr(e, head)) for e in evaluations if e.set == name]
    return [(e, value) for e, value in values if value is not None]


def _chosen(evaluations: list[Evaluation], select_by: str | None, key: str) -> Choice | None:
    """Accuracy of a "set/head" at the step where the same head was best on `select_by`; of equals, the first."""
    name, _, head = key.rpartition("/")
    candidates = _accuracies(evaluations, f"{select_by}/{head}")
    if select_by is None or name == select_by or not candidates:
        return None
    best, _ = max(candidates, key=lambda pair: (pair[1], -pair[0].step))
    there = [value for e, value in _accuracies(evaluations, key) if e.step == best.step]
    return Choice(best.step, there[0]) if there else None


def _time_to(evaluations: list[Evaluation], key: str, target: float) -> float | None:
    """Training seconds at the first evaluation that showed the target."""
    return next((e.seconds for e, value in _accuracies(evaluations, key) if value >= target), None)


def _effective(tables: dict[str, Any]) -> dict[str, Any]:
    """Without what a method does not go by: it tells no two apart."""
    method = Method.model_validate(tables.get("method", {})).effective
    return tables | {"method": method.model_dump(mode="json", exclude_none=True)}


def _flat(prefix: str, table: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        flat |= _flat(f"{name}.", value) if isinstance(value, dict) else {name: value}
    return flat
