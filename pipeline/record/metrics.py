"""Figures of a window of steps: summed on the device, reduced over ranks once when the window closes."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed

_OF = " of"  # ends the name of what a share is divided by
_TIME_FIELDS = frozenset({"time", "seconds", "train_seconds", "images_per_s", "data_wait", "memory_gb"})


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a record what a clock says: the rest is the same for two runs of one configuration."""
    return {k: v for k, v in record.items() if k not in _TIME_FIELDS and not k.startswith("vs_reference/")}


class Window:
    """Sums since it was made, over the steps that count. Nothing waits for the device until `close`."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._step: dict[str, torch.Tensor] = {}  # not settled yet
        self._images = 0
        self._waited = 0.0
        self._opened = time.perf_counter()

    def add(
        self,
        images: int,
        sums: Mapping[str, torch.Tensor],
        shares: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
    ) -> None:
        """Add one micro-batch, with the same names on every rank, all 0-dim.

        Args:
            images: its nominal size.
            sums: over its valid samples, among them their number, "valid".
            shares: sums over some of these, each with what it is to be divided by.
        """
        self._images += images
        parts = {name: part for name, (part, _) in (shares or {}).items()}
        wholes = {name + _OF: whole for name, (_, whole) in (shares or {}).items()}
        for name, value in {**sums, **parts, **wholes}.items():
            value = value.detach().double()
            self._step[name] = self._step[name] + value if name in self._step else value

    def settle(self, skipped: torch.Tensor) -> None:
        """End a step; where `skipped` (0-dim bool, on the device) is True, its sums count nowhere."""
        for name, value in self._step.items():
            value = torch.where(skipped, 0.0, value)
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._step = {}

    def waited(self, seconds: float) -> None:
        """Add time in which the device had nothing to do because data were late."""
        self._waited += seconds

    def close(self) -> dict[str, float]:
        """Means over the valid samples of all ranks, or over those of a share, and rates; by all ranks together.

        A mean over no sample is NaN.
        """
        assert not self._step, "settle first"
        names = sorted(self._sums)
        # The copy waits for the device, so the clock is read after it.
        values = torch.stack([self._sums[name] for name in names]).cpu()
        seconds = time.perf_counter() - self._opened
        total = torch.cat([values, torch.tensor([self._images, self._waited, seconds, 1.0], dtype=torch.float64)])
        torch.distributed.all_reduce(total)
        *sums, images, waited, seconds, ranks = total.tolist()
        figures = dict(zip(names, sums, strict=True))
        wholes = {name: figures.pop(name + _OF, figures["valid"]) for name in names if not name.endswith(_OF)}
        valid = figures.pop("valid")
        return {name: value / wholes[name] if wholes[name] else math.nan for name, value in figures.items()} | {
            "images": images,
            "valid": valid,
            "seconds": seconds / ranks,
            "images_per_s": images * ranks / seconds,
            "data_wait": waited / seconds,
            "memory_gb": peak_memory_gb(),
        }


def peak_memory_gb() -> float:
    """Highest memory in use so far on any rank, in 10^9 bytes: of the GPU if there is one, else of the process."""
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _peak_resident()
    value = torch.tensor([peak], dtype=torch.float64)
    torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
    return float(value) / 1e9


def _peak_resident() -> int:
    """Bytes. Not ru_maxrss, which begins with that of the process which started this one."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
