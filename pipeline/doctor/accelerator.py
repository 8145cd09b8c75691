"""GPUs as torch sees them, the collectives they need, and what DeepSpeed runs on."""

import os
import warnings
from collections import Counter
from pathlib import Path

from pipeline.doctor.check import Check, reason
from pipeline.doctor.libraries import REINSTALL

_SIDE = 64


def gpu(name: str) -> Check:
    """The GPUs, each of which has to multiply; or why there are none."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
        broken = [_use(index) for index in range(torch.cuda.device_count())] if usable else []
    said = "; ".join(dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught))
    if not usable:
        return _none(name, said)
    found = f"{_in_words()}; CUDA {torch.version.cuda}, NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"
    if wrong := [f"GPU {index}: {why}" for index, why in enumerate(broken) if why]:
        mend = "nvidia-smi shows driver and processes; CUDA_VISIBLE_DEVICES=... leaves a GPU out"
        return Check(name, "FAIL", f"{found}; {'; '.join(wrong)}", mend)
    if said:
        return Check(name, "warn", f"{found}; {said}", "see what torch says; nvidia-smi shows the driver")
    return Check(name, "ok", found)


def backends(name: str) -> Check:
    """What collectives can run on."""
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        return Check(name, "FAIL", "torch was built without distributed", REINSTALL)
    there = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available()}
    needed = ["gloo", "nccl"] if torch.cuda.is_available() else ["gloo"]
    if lacking := [backend for backend in needed if not there[backend]]:
        return Check(name, "FAIL", f"torch was built without {' and '.join(lacking)}", REINSTALL)
    return Check(name, "ok", ", ".join(backend for backend, is_there in there.items() if is_there))


def deepspeed(name: str) -> Check:
    """What DeepSpeed runs on, which has to be what torch runs on."""
    import torch
    from deepspeed.accelerator import get_accelerator

    asked = os.environ.get("DS_ACCELERATOR")
    chosen, expected = get_accelerator().device_name(), "cuda" if torch.cuda.is_available() else "cpu"
    found = f"{chosen}, {f'DS_ACCELERATOR={asked}' if asked else 'found by itself'}"
    if chosen != expected:
        return Check(name, "FAIL", f"{found}; torch runs on {expected}", "unset DS_ACCELERATOR")
    return Check(name, "ok", found)


def _none(name: str, said: str) -> Check:
    """Nothing to use: as it should be, hidden, or a driver that does not fit."""
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU-only"
    devices = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if devices and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Check(name, "warn", f"{devices}, hidden by CUDA_VISIBLE_DEVICES", "unset CUDA_VISIBLE_DEVICES")
    if devices or "too old" in said:
        mend = "nvidia-smi has to work first; then install the driver, or the torch, that fits the other"
        if not torch.version.cuda:
            mend = f"{REINSTALL}, or: pip install --force-reinstall torch torchvision"
        return Check(name, "FAIL", f"{devices}, but torch ({build} build) cannot use them: {said}", mend)
    return Check(name, "ok", f"none; torch {torch.__version__} ({build} build) runs on the CPU")


def _use(index: int) -> str:
    """Multiply two matrices on a GPU; return what went wrong."""
    import torch

    try:
        ones = torch.ones(_SIDE, _SIDE, device=f"cuda:{index}")
        total = float((ones @ ones).sum())
    except Exception as error:
        return reason(error)
    return "" if total == _SIDE**3 else f"a sum of {_SIDE**3} came out as {total:g}"


def _in_words() -> str:
    """The GPUs, equal ones together."""
    import torch

    found: Counter[str] = Counter()
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        precision = "bfloat16" if about.major >= 8 else "no bfloat16, so float32"  # Ampere brought it
        found[f"{about.name} ({about.total_memory / 1e9:.1f} GB, {about.major}.{about.minor}, {precision})"] += 1
    return ", ".join(f"{count} x {which}" for which, count in found.items())
