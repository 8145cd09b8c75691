"""How far a long command is: a bar on a terminal, plain lines in a log, nothing from Python."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self


class Progress:
    """Says nothing; the two below say it. Used as a context manager."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self, total: int, unit: str) -> None:
        """Begin to count up to `total` units."""

    def advance(self, count: int) -> None:
        """Count `count` more units as done."""

    def received(self, count: int) -> None:
        """Count `count` bytes that came for a unit which is not done yet."""

    def say(self, line: str) -> None:
        """Tell the user something that matters now."""

    def close(self) -> None:
        """Stop counting."""


class Bar(Progress):
    """A bar with rate and time left, on standard error."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.bytes, self.drawn = 0, 0.0

    def start(self, total: int, unit: str) -> None:
        """Draw the bar."""
        from tqdm import tqdm

        self.bytes = 0
        self.bar = tqdm(total=total, unit=f" {unit}", unit_scale=True, dynamic_ncols=True, leave=False)

    def advance(self, count: int) -> None:
        """Move the bar."""
        self.bar.update(count)

    def received(self, count: int) -> None:
        """Write the bytes behind the bar, ten times a second at most."""
        self.bytes += count
        now = time.monotonic()
        if self.bar is not None and now > self.drawn + 0.1:
            self.bar.set_postfix_str(_megabytes(self.bytes))
            self.drawn = now

    def say(self, line: str) -> None:
        """Print above the bar."""
        if self.bar is None:
            print(line, file=sys.stderr)
        else:
            self.bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """Wipe the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class Lines(Progress):
    """A line every few seconds, on standard error; none where all is done within two."""

    def __init__(self, first: float = 2.0, every: float = 10.0) -> None:
        self.first, self.every = first, every
        self.total = self.done = self.bytes = 0
        self.unit = ""
        self.began = self.due = 0.0

    def start(self, total: int, unit: str) -> None:
        """Start the clock."""
        self.total, self.done, self.bytes, self.unit = total, 0, 0, unit
        self.began = time.monotonic()
        self.due = self.began + self.first

    def advance(self, count: int) -> None:
        """Print where it is time to."""
        self.done += count
        self._print()

    def received(self, count: int) -> None:
        """Print where it is time to."""
        self.bytes += count
        self._print()

    def _print(self) -> None:
        now = time.monotonic()
        if now < self.due or self.done >= self.total:
            return
        self.due = now + self.every
        seconds = now - self.began
        pace = f"{self.done / seconds:,.0f}/s"
        if self.bytes:
            pace = f"{_megabytes(self.bytes)}, {self.bytes / 1e6 / seconds:,.1f} MB/s"
        left = f", {(self.total - self.done) * seconds / self.done:,.0f} s left" if self.done else ""
        self.say(f"{self.done:,} of {self.total:,} {self.unit}, {pace}{left}")

    def say(self, line: str) -> None:
        """Print a line."""
        print(line, file=sys.stderr, flush=True)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB received"


@contextmanager
def if_long(progress: Progress, line: str, seconds: float = 5.0) -> Iterator[None]:
    """Say `line` where the block takes longer than `seconds`: for work that cannot tell how far it is."""
    timer = threading.Timer(seconds, progress.say, [line])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def for_user() -> Progress:
    """Return what suits standard error: a bar on a terminal, else lines."""
    return Bar() if sys.stderr.isatty() else Lines()
