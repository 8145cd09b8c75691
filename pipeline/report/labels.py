"""What became of right and wrong labels by the end of training, over seeds; where true labels are known."""

from collections.abc import Mapping
from statistics import fmean

from pipeline.report.finished import Evidence, Run
from pipeline.report.statistics import Spread, spread

# Names of `finished.Evidence`, as a table heads them; shares and means, in percent there.
HEADINGS = {
    "given_top1": "given %",
    "true_top1": "true %",
    "memorised": "memorised %",
    "precision": "precision %",
    "recall": "recall %",
    "probability_right": "probability: right %",
    "probability_wrong": "probability: wrong %",
    "confidence_right": "confidence: right %",
    "confidence_wrong": "confidence: wrong %",
}


def last_epoch(evidence: list[Evidence]) -> dict[str, float]:
    """Means over the last epoch's stretches, of those that had such samples; values 0 to 1, by name."""
    if not evidence:
        return {}
    within = [e for e in evidence if e.epoch > evidence[-1].epoch - 1]
    known = {name: [e.values[name] for e in within] for name in evidence[-1].values}
    return {name: fmean(own) for name, values in known.items() if (own := [v for v in values if v is not None])}


def spreads(runs: list[Run]) -> dict[str, Spread]:
    """Each figure of the last epoch over the runs that have it."""
    found = {run.seed: last_epoch(run.evidence) for run in runs}
    every = {name: spread({seed: own.get(name) for seed, own in found.items()}) for name in HEADINGS}
    return {name: own for name, own in every.items() if own is not None}


def rows(methods: Mapping[str, Mapping[str, Spread]]) -> list[list[str]]:
    """Header and one row a method that has any, mean +/- std in percent; empty where none has."""
    shown = [name for name in HEADINGS if any(name in own for own in methods.values())]
    lines = [[method, *(_percent(own.get(name)) for name in shown)] for method, own in methods.items() if own]
    return [["method", *(HEADINGS[name] for name in shown)], *lines] if lines else []


def _percent(found: Spread | None) -> str:
    if found is None:
        return ""
    return f"{100 * found.mean:.1f}" + ("" if found.std is None else f" +/- {100 * found.std:.1f}")
