"""Line charts as inline SVG: readable at 370 and at 600 pixels, coloured by the page's style sheet, no script."""

import math
from dataclasses import dataclass, replace
from html import escape

WIDTH, HEIGHT = 520, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 16, 30, 50
COLOURS = 6
_MARKS = 8

# One shape a method besides its colour: colour alone does not reach every eye or printer. Drawn around 0, 0.
_SHAPES = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "M-4 -4h8v8h-8z",
    "M0 -5.5l5 9h-10z",
    "M0 -5.5l5 5.5l-5 5.5l-5 -5.5z",
    "M0 5.5l5 -9h-10z",
    "M-5 -1.6h3.4v-3.4h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4z",
)
_DASHES = ("", "7 4", "2 4")

Points = list[tuple[float, float | None]]


@dataclass(frozen=True)
class Curve:
    """One method: a thick line (mean) and a thin one per seed. A point without a value breaks the line."""

    name: str
    number: int
    mean: Points
    seeds: list[Points]


def chart(
    title: str, x_label: str, y_label: str, curves: list[Curve], low: float | None = None, *, log: bool = False
) -> str:
    """An SVG element; axes that span the data, or begin at about `low` and cut off what is below.

    With `log`, y is logarithmic; a point that is not above 0 breaks the line there.
    """
    if log:
        curves = [replace(c, mean=_positive(c.mean), seeds=[_positive(line) for line in c.seeds]) for c in curves]
    points = [p for curve in curves for line in (curve.mean, *curve.seeds) for p in line]
    values = [y for _, y in points if y is not None]
    x_ticks = ticks(0.0, max((x for x, _ in points), default=1.0))
    y_ticks = (log_ticks if log else ticks)(min(values, default=0.1) if low is None else low, max(values, default=1.0))
    names = ", ".join(curve.name for curve in curves)
    label = escape(f"{title}: {y_label} over {x_label}, for {names}")
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}"><title>{label}</title>']
    parts += _axes(x_ticks, y_ticks, x_label, y_label, log=log)
    # An inner SVG cuts off what leaves it; room for marks at the top and the sides.
    box = (_LEFT - 6, _TOP - 6, WIDTH - _LEFT - _RIGHT + 12, HEIGHT - _TOP - _BOTTOM + (12 if low is None else 6))
    left, top, width, height = box
    parts.append(
        f'<svg x="{left}" y="{top}" width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">'
    )

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = _LEFT + _share(point[0], x_ticks) * (WIDTH - _LEFT - _RIGHT)
        return x, HEIGHT - _BOTTOM - _share(point[1], y_ticks, log=log) * (HEIGHT - _TOP - _BOTTOM)

    for curve in curves:
        pieces = [[place(p) for p in piece] for piece in _pieces(curve.mean)]
        lines = [("seed", [place(p) for p in piece]) for line in curve.seeds for piece in _pieces(line)]
        dash = _DASHES[curve.number // COLOURS % len(_DASHES)]
        parts.append(f'<g class="m{curve.number % COLOURS}"><title>{escape(curve.name)}</title>')
        for kind, piece in (*lines, *(("mean", piece) for piece in pieces)):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in piece)
            dashed = f' stroke-dasharray="{dash}"' if dash and kind == "mean" else ""
            parts.append(f'<polyline class="{kind}" points="{path}"{dashed}/>')
        # Offset by method, so that the marks of methods that lie on each other stay apart.
        corners = [corner for piece in pieces for corner in piece]
        step = max(1, math.ceil(len(corners) / _MARKS))
        for x, y in corners[curve.number % step :: step]:
            parts.append(f'<path d="{_shape(curve.number)}" transform="translate({x:.1f} {y:.1f})"/>')
        parts.append("</g>")
    return "".join([*parts, "</svg></svg>"])


def swatch(number: int) -> str:
    """A method's line and mark, for the legend; decoration, since the name stands beside it."""
    dash = _DASHES[number // COLOURS % len(_DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<svg class="swatch m{number % COLOURS}" viewBox="-14 -7 28 14" aria-hidden="true">'
        f'<polyline class="mean" points="-14,0 14,0"{dashed}/><path d="{_shape(number)}"/></svg>'
    )


def ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers, evenly spaced, that enclose low and high."""
    if high <= low:
        low, high = (low - 1, high + 1) if low else (0.0, 1.0)
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers above 0 that enclose low and high: the fewer within a factor of ten, the more tens there are."""
    tens = math.log10(high / low)
    steps = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if tens <= 1 else (1.0, 2.0, 5.0) if tens <= 2 else (1.0,)
    stride = math.ceil((tens + 1) / 7)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high)) + stride
    every = [step * 10.0**power for power in range(first, last + 1, stride) for step in steps]
    below = max(i for i, value in enumerate(every) if value <= low * (1 + 1e-9))
    above = min(i for i, value in enumerate(every) if value >= high * (1 - 1e-9))
    return every[below : max(above, below + 1) + 1]


def _axes(x_ticks: list[float], y_ticks: list[float], x_label: str, y_label: str, *, log: bool) -> list[str]:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts = [f'<text x="6" y="15">{escape(y_label)}</text>']
    y_texts = [f"{value:g}" for value in y_ticks] if log else _texts(y_ticks)
    for value, text in zip(y_ticks, y_texts, strict=True):
        y = bottom - _share(value, y_ticks, log=log) * (bottom - _TOP)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 5:.1f}" text-anchor="end">{text}</text>')
    for value, text in zip(x_ticks, _texts(x_ticks), strict=True):
        x = _LEFT + _share(value, x_ticks) * (right - _LEFT)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{text}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    return parts


def _texts(values: list[float]) -> list[str]:
    """All with the digits that the step needs."""
    step = values[1] - values[0]
    if max(map(abs, values)) >= 1e5 or step < 1e-3:
        return [f"{value:.3g}" for value in values]
    digits = next(d for d in range(6) if abs(round(step, d) - step) < step * 1e-6)
    return [f"{value:.{digits}f}" for value in values]


def _share(value: float, scale: list[float], *, log: bool = False) -> float:
    if log:
        return math.log(value / scale[0]) / math.log(scale[-1] / scale[0])
    return (value - scale[0]) / (scale[-1] - scale[0])


def _positive(line: Points) -> Points:
    return [(x, y if y is not None and y > 0 else None) for x, y in line]


def _pieces(line: Points) -> list[list[tuple[float, float]]]:
    """Stretches with values."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in line:
        if y is not None:
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _shape(number: int) -> str:
    return _SHAPES[number % len(_SHAPES)]
