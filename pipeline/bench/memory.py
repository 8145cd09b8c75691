"""Memory of this process, as Linux counts it."""

from collections.abc import Callable
from pathlib import Path

_CLEAR = Path("/proc/self/clear_refs")


def resident(field: str, process: int | str = "self") -> int:
    """Bytes of a field of a process's status: `VmRSS`, `VmHWM` (the peak), `RssAnon` (its own), `RssFile` (mapped)."""
    return _kilobytes(Path(f"/proc/{process}/status"), field)


def proportional(process: int | str = "self") -> int:
    """Bytes of a process in which a page that n processes share counts as an n-th (PSS)."""
    return _kilobytes(Path(f"/proc/{process}/smaps_rollup"), "Pss")


def _kilobytes(file: Path, field: str) -> int:
    line = next(line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def peak(work: Callable[[], object]) -> int | None:
    """Bytes by which this process grew at its peak during `work`; None where the system does not tell.

    Not ru_maxrss: it cannot be reset, and a process starts with that of the process which started it.
    """
    try:
        _CLEAR.write_text("5")  # the highest resident size is now the present one
    except OSError:
        return None
    before = resident("VmHWM")
    work()
    return resident("VmHWM") - before
