"""Peak memory of one variant alone."""

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.bench.memory import peak

MARK = "peak bytes:"

ON_GPU = (
    "`torch.cuda.max_memory_allocated` while the variant is built and takes its first steps, less what the variants "
    "before it hold: weights, gradients, momentum, activations and workspace of this one alone"
)
ON_CPU = (
    "measured in a process of its own for each variant: highest resident memory during its first steps (Linux, "
    "`VmHWM`, reset before the first step) less the resident memory before the first step: gradients, momentum, "
    "activations and workspace, without weights and without the libraries"
)


def gpu_peak(work: Callable[[], None], device: torch.device) -> int:
    """Bytes that `work` had allocated at its peak, over what was allocated before it."""
    gc.collect()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def cpu_peak(step: Callable[[], object], steps: int) -> int | None:
    """Bytes by which this process grew at its peak during `steps`; None where the system does not tell."""

    def work() -> None:
        for _ in range(steps):
            step()

    return peak(work)


def in_own_process(method: str, arguments: list[str]) -> int | None:
    """Have a fresh process of `benchmarks.methods` measure one method; None where it cannot."""
    command = [sys.executable, "-m", "benchmarks.methods", *arguments, "--memory-of", method]
    result = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{method}: its process ended with status {result.returncode}:\n{result.stderr[-2000:]}")
    line = next(line for line in result.stdout.splitlines() if line.startswith(MARK))
    peak: int | None = json.loads(line.removeprefix(MARK))
    return peak
