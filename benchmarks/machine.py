"""Where and when figures were taken."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pipeline.train.identity import versions


def facts() -> dict[str, Any]:
    """Date, machine, load, versions and commit, as they are now."""
    found: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),  # of other programs, when taken before the first step
        "versions": {"python": platform.python_version(), **versions(), **_timm()},
        "commit": _commit(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": properties.name,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def in_words(found: dict[str, Any]) -> str:
    """One line for a person."""
    gpu = f"{found['gpu']['name']}, CUDA {found['gpu']['cuda']}; " if "gpu" in found else ""
    known = found["versions"]
    libraries = ", ".join(f"{name} {known[name]}" for name in ("torch", "deepspeed", "timm") if name in known)
    return (
        f"{found['date']}; {gpu}{found['cpu']}, {found['cores']} cores, {found['threads']} threads, "
        f"load {found['load']} before the start; {libraries}; commit {found['commit']}"
    )


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _timm() -> dict[str, str]:
    try:
        return {"timm": version("timm")}
    except PackageNotFoundError:
        return {}


def _commit() -> str:
    """Short name, with "+" where tracked files differ from it."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/pipeline", ":/benchmarks/*.py")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")
