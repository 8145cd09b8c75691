"""Curves of a comparison as HTML figures: every pair over epochs and over training time, under one legend."""

from collections.abc import Callable
from functools import partial
from html import escape
from statistics import fmean
from typing import NamedTuple

from pipeline.report.chart import Curve, Points, chart, swatch
from pipeline.report.finished import HEADS, Run
from pipeline.report.results import Results

_UNITS = (("s", 1, 600), ("min", 60, 36_000), ("h", 3_600, float("inf")))


class _Dot(NamedTuple):
    step: int
    epoch: float
    seconds: float
    value: float | None


_Lines = list[list[_Dot]]


class _Panel(NamedTuple):
    """A chart over epochs; `line` is what a run has to show in it."""

    caption: str
    title: str
    y_label: str
    line: Callable[[Run], list[_Dot]]


# What `pipeline.method.evidence` records, as it is called on the page.
_EVIDENCE = {
    "given_top1": "Accuracy by the given labels",
    "true_top1": "Accuracy by the true labels",
    "memorised": "Wrong labels that the network predicts",
    "precision": "Treated as clean: of these, right",
    "recall": "Right labels: of these, treated as clean",
    "probability_right": "Probability given to right labels",
    "probability_wrong": "Probability given to wrong labels",
    "confidence_right": "Confidence in right labels",
    "confidence_wrong": "Confidence in wrong labels",
}


_HEADINGS = {"main": "main head", "averaged": "averaged heads", "ensemble": "both networks"}


def accuracy_figures(results: Results) -> str:
    """Per evaluation set and head, in percent; methods without that head are not in it."""
    parts = []
    for name in results.sets:
        for head in HEADS:
            lines = {m.name: [_accuracies(run, name, head) for run in m.runs] for m in results.methods}
            present = {method: own for method, own in lines.items() if any(own)}
            if present:
                heading = f"{name}: {_HEADINGS[head]}"
                figures = _figures(heading, "top-1 accuracy (%)", results, present, low=_low(present))
                parts.append(f"<h3>{escape(heading)}</h3>{figures}")
    return "".join(parts)


def loss_figures(results: Results) -> str:
    """The training loss of every method."""
    lines = {
        m.name: [[_Dot(w.step, w.epoch, w.seconds, w.loss) for w in run.losses] for run in m.runs]
        for m in results.methods
    }
    return _figures("training", "loss", results, lines)


def norm_figures(results: Results) -> str:
    """Norms of Jacobians, input first; see `_over_epochs`."""
    runs = [run for method in results.methods for run in method.runs]
    names = sorted({name for run in runs for norms in run.norms for name in norms.values}, key=_depth)
    panels = []
    for name in names:
        caption = "To the input" if name == "input" else f"To the output of stage {name.removeprefix('hidden/stage')}"
        title = f"Jacobian {caption[0].lower() + caption[1:]}"
        panels.append(_Panel(caption, title, "norm", partial(_norms, name=name)))
    return _over_epochs(results, panels, may_be_log=True)


def evidence_figures(results: Results) -> str:
    """What became of wrong labels, in percent; see `_over_epochs`."""
    panels = [_Panel(text, text, "%", partial(_evidence, name=name)) for name, text in _EVIDENCE.items()]
    return _over_epochs(results, panels)


def _over_epochs(results: Results, panels: list[_Panel], *, may_be_log: bool = False) -> str:
    """Charts under one legend; methods whose runs have nothing to show are not in it, "" if there is no such run."""
    figures: list[str] = []
    shown: dict[str, _Lines] = {}
    for panel in panels:
        lines = {m.name: [own for run in m.runs if (own := panel.line(run))] for m in results.methods}
        present = {method: own for method, own in lines.items() if own}
        if not present:
            continue
        shown |= present
        values = [d.value for own in present.values() for line in own for d in line if d.value is not None and d.value]
        # On a linear axis one method that is ten times steeper would press the others to the bottom.
        log = may_be_log and bool(values) and max(values) > 5 * min(values)
        y_label = panel.y_label + (" (log scale)" if log else "")
        drawn = chart(panel.title, "epoch", y_label, _curves(results, present, "epoch", 1), log=log)
        figures.append(f"<figure><figcaption>{escape(panel.caption)}</figcaption>{drawn}</figure>")
    return _legend(results, shown, None) + f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _norms(run: Run, name: str) -> list[_Dot]:
    return [_Dot(n.step, n.epoch, 0.0, n.values[name]) for n in run.norms if name in n.values]


def _evidence(run: Run, name: str) -> list[_Dot]:
    values = [(e, e.values[name]) for e in run.evidence if name in e.values]
    return [_Dot(e.step, e.epoch, 0.0, None if value is None else 100 * value) for e, value in values]


def _depth(name: str) -> tuple[bool, str]:
    return name != "input", name


def _accuracies(run: Run, name: str, head: str) -> list[_Dot]:
    dots = [_Dot(e.step, e.epoch, e.seconds, getattr(e, head)) for e in run.evaluations if e.set == name]
    return [dot._replace(value=100 * dot.value) for dot in dots if dot.value is not None]


def _figures(title: str, y_label: str, results: Results, series: dict[str, _Lines], low: float | None = None) -> str:
    longest = max((dot.seconds for lines in series.values() for line in lines for dot in line), default=0.0)
    unit, size = next((unit, size) for unit, size, below in _UNITS if longest < below)
    figures = []
    for x_label, field, scale in (("epoch", "epoch", 1), (f"training time ({unit})", "seconds", size)):
        drawn = chart(title, x_label, y_label, _curves(results, series, field, scale), low)
        figures.append(f"<figure>{drawn}</figure>")
    return f'{_legend(results, series, low)}<div class="charts">{"".join(figures)}</div>'


def _curves(results: Results, series: dict[str, _Lines], field: str, scale: float) -> list[Curve]:
    numbers = {method.name: number for number, method in enumerate(results.methods)}
    return [
        Curve(
            name,
            numbers[name],
            _points(_mean(lines), field, scale),
            [_points(line, field, scale) for line in lines if len(lines) > 1],
        )
        for name, lines in series.items()
    ]


def _legend(results: Results, series: dict[str, _Lines], low: float | None) -> str:
    numbers = {method.name: number for number, method in enumerate(results.methods)}
    legend = "".join(f"<li>{swatch(numbers[name])}{escape(name)}</li>" for name in series)
    notes = ["thick: mean over seeds, thin: each seed"] if any(len(lines) > 1 for lines in series.values()) else []
    notes += [] if low is None else ["lower values, early in training, are cut off"]
    note = f'<p class="soft">{"; ".join(notes).capitalize()}.</p>' if notes else ""
    return f'<ul class="legend">{legend}</ul>{note}'


def _low(series: dict[str, _Lines]) -> float | None:
    """Lowest accuracy after the first quarter of training, if that leaves most of the height to what differs."""
    every = [line for lines in series.values() for line in lines if line]
    values = [dot.value for line in every for dot in line if dot.value is not None]
    late = [dot.value for line in every for dot in line if dot.value is not None and dot.step >= line[-1].step / 4]
    low, lowest, highest = min(late), min(values), max(values)
    return low if highest - low < 0.6 * (highest - lowest) else None


def _mean(lines: _Lines) -> list[_Dot]:
    """Over the steps that every seed has; a step where one has no value has none."""
    by_step = [{dot.step: dot for dot in line} for line in lines]
    mean = []
    for step in sorted(set(by_step[0]).intersection(*by_step)):
        dots = [own[step] for own in by_step]
        values = [dot.value for dot in dots if dot.value is not None]
        value = fmean(values) if len(values) == len(dots) else None
        mean.append(_Dot(step, fmean(d.epoch for d in dots), fmean(d.seconds for d in dots), value))
    return mean


def _points(line: list[_Dot], field: str, scale: float) -> Points:
    return [(getattr(dot, field) / scale, dot.value) for dot in line]
