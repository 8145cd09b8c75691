"""One look of the doctor: what was found, and what mends it."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

_LONGEST = 240  # characters of a reason


@dataclass(frozen=True)
class Check:
    """A finding.

    `warn`: training works, but less well or not everywhere. `mend`: what to type; empty where all is well.
    """

    name: str
    state: Literal["ok", "warn", "FAIL"]
    found: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.state:<4}  {self.name:<22}  {self.found}" + (f"  ->  {self.mend}" if self.mend else "")


Look = Callable[[str], Check]  # from the check's name


def isolated(name: str, look: Look) -> Check:
    """Look; any exception is a failure of this check alone, and nothing that libraries print or set is left behind."""
    try:
        with _quiet(), _same_environment():
            return look(name)
    except Exception as error:
        return Check(name, "FAIL", reason(error), "mend what failed above, if anything; else report it with this line")


def reason(error: Exception) -> str:
    """Return an exception as one line: its type and what it says first."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said if len(said) <= _LONGEST else said[:_LONGEST] + '...'}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _same_environment() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        if os.environ != before:
            os.environ.clear()
            os.environ.update(before)
