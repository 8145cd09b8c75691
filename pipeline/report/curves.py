"""Curves of a comparison as HTML figures: every pair over epochs and over training time, under one legend."""

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


def accuracy_figures(results: Results) -> str:
    """Per evaluation set and head, in percent; methods without that head are not in it."""
    parts = []
    for name in results.sets:
        for head in HEADS:
            lines = {m.name: [_accuracies(run, name, head) for run in m.runs] for m in results.methods}
            present = {method: own for method, own in lines.items() if any(own)}
            if present:
                heading = f"{name}: {'main head' if head == 'main' else 'averaged heads'}"
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


def _accuracies(run: Run, name: str, head: str) -> list[_Dot]:
    dots = [_Dot(e.step, e.epoch, e.seconds, getattr(e, head)) for e in run.evaluations if e.set == name]
    return [dot._replace(value=100 * dot.value) for dot in dots if dot.value is not None]


def _figures(title: str, y_label: str, results: Results, series: dict[str, _Lines], low: float | None = None) -> str:
    longest = max((dot.seconds for lines in series.values() for line in lines for dot in line), default=0.0)
    unit, size = next((unit, size) for unit, size, below in _UNITS if longest < below)
    numbers = {method.name: number for number, method in enumerate(results.methods)}
    figures = []
    for x_label, field, scale in (("epoch", "epoch", 1), (f"training time ({unit})", "seconds", size)):
        curves = [
            Curve(
                name,
                numbers[name],
                _points(_mean(lines), field, scale),
                [_points(line, field, scale) for line in lines if len(lines) > 1],
            )
            for name, lines in series.items()
        ]
        figures.append(f"<figure>{chart(title, x_label, y_label, curves, low)}</figure>")
    legend = "".join(f"<li>{swatch(numbers[name])}{escape(name)}</li>" for name in series)
    notes = ["thick: mean over seeds, thin: each seed"] if any(len(lines) > 1 for lines in series.values()) else []
    notes += [] if low is None else ["lower values, early in training, are cut off"]
    note = f'<p class="soft">{"; ".join(notes).capitalize()}.</p>' if notes else ""
    return f'<ul class="legend">{legend}</ul>{note}<div class="charts">{"".join(figures)}</div>'


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
