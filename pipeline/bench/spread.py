"""Repeats of one figure -> what is said of them."""

from collections.abc import Sequence
from statistics import median


def spread(values: Sequence[float]) -> str:
    """Median [lowest-highest], with three or four digits that count."""
    middle = median(values)
    digits = 0 if middle >= 1000 else 1 if middle >= 100 else 2 if middle >= 0.1 else 4
    return f"{middle:,.{digits}f} [{min(values):,.{digits}f}-{max(values):,.{digits}f}]"


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Each repeat's figure over the other's of the same repeat, so that a drift of the machine cancels."""
    return [a / b for a, b in zip(over, under, strict=True)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of a Markdown table whose columns stand under each other."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
