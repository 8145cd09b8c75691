"""A line of the table that drills end with."""

from collections.abc import Sequence
from dataclasses import dataclass, field

HEADER = ("drill", "launcher", "what was done, when", "exit", "lost", "as undisturbed", "orphans", "partial files", "s")


@dataclass
class Row:
    """What one drill did and found; it passed if it has no problems.

    Attributes:
        drill: name of the kind.
        launcher: what started the ranks, and how many.
        done: what was done to them, and when.
        status: exit statuses, in words.
        lost: steps that had to be done again, in words.
        same: whether all that lasts is as if nothing had happened.
        orphans: processes that outlived their run.
        partial: files that are neither whole nor swept.
        seconds: from the first start to the last look.
        problems: everything that is not as it should be.
    """

    drill: str
    launcher: str
    done: str
    status: str = "-"
    lost: str = "-"
    same: str = "-"
    orphans: Sequence[str] = ()
    partial: Sequence[str] = ()
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def found(self) -> list[str]:
        """Return the problems, orphans and partial files among them."""
        left = [f"orphan: {words}" for words in self.orphans] + [f"partial file: {name}" for name in self.partial]
        return self.problems + left

    def cells(self) -> tuple[str, ...]:
        """As they stand in the table."""
        drill = self.drill if not self.found() else f"**FAILED** {self.drill}"
        orphans, partial = (str(len(x) or "none") for x in (self.orphans, self.partial))
        return (
            drill, self.launcher, self.done, self.status, self.lost, self.same, orphans, partial, f"{self.seconds:.0f}"
        )  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table."""
    lines = [HEADER, tuple("---" for _ in HEADER), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
