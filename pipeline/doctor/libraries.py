"""Python, the packages that training rests on, a compiler, and what wandb knows."""

import importlib
import importlib.metadata
import netrc
import os
import platform
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.doctor.check import Check, reason

# By the name a registry knows: what Python imports.
MODULES = {
    "alasca": "pipeline",
    "torch": "torch",
    "torchvision": "torchvision",
    "deepspeed": "deepspeed",
    "numpy": "numpy",
    "simplejpeg": "simplejpeg",
    "opencv-python-headless": "cv2",
    "wandb": "wandb",
    "webdataset": "webdataset",
    "safetensors": "safetensors",
}

REINSTALL = "make clean install (in alasca's folder)"
_WANDB = "https://api.wandb.ai"
_COMPILERS = ("cc", "gcc", "clang")
_MAX_PIXELS = 1_000_000


def python(name: str) -> Check:
    """The interpreter; one that is too old could not have read this file."""
    return Check(name, "ok", f"{platform.python_version()}, {sys.executable}")


def library(name: str) -> Check:
    """Whether a package is there, new enough for alasca, and can be imported."""
    again = f"{REINSTALL}, or: pip install --force-reinstall {name}"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "FAIL", "not installed", again)
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # wandb would reach out
    try:
        importlib.import_module(MODULES[name])
    except Exception as error:
        if "DS_ACCELERATOR" in str(error):
            again = "unset DS_ACCELERATOR"
        return Check(name, "FAIL", f"{version} cannot be imported: {reason(error)}", again)
    least = _least(name)
    if _numbers(version) < _numbers(least):
        return Check(name, "FAIL", f"{version}, but alasca needs {least}", again)
    return Check(name, "ok", version)


def torchvision(name: str) -> Check:
    """As `library`; and the one way to break it that every machine with a CPU-only wheel of torch offers."""
    check = library(name)
    if check.state != "FAIL" or check.found == "not installed":
        return check
    torch = importlib.metadata.version("torch")
    if not torch.endswith("+cpu") and "torchvision::nms" not in check.found:
        return check
    why = "a CPU-only wheel cannot carry the registry's torchvision" if torch.endswith("+cpu") else "not of one build"
    pair = f"torch {torch} beside torchvision {importlib.metadata.version(name)}: {why}"
    mend = f"{REINSTALL}, or: pip install --force-reinstall torch torchvision"
    return Check(name, "FAIL", f"{pair}; {check.found}", mend)


def compiler(name: str) -> Check:
    """A C compiler."""
    asked = [os.environ["CC"]] if os.environ.get("CC") else []
    path = next(filter(None, map(shutil.which, [*asked, *_COMPILERS])), None)
    if path is None:
        found = "none in PATH; training needs none, but torch.compile and DeepSpeed's own ops do"
        return Check(name, "warn", found, "apt-get install gcc")
    return Check(name, "ok", path)


def jpeg(name: str) -> Check:
    """A picture of one colour, encoded and decoded as training does."""
    import numpy as np
    import simplejpeg

    from pipeline.data.decode import decode

    colour = np.array([200, 120, 40])
    data = simplejpeg.encode_jpeg(np.full((16, 24, 3), colour, dtype=np.uint8), quality=95)
    pixels = decode(data, _MAX_PIXELS)
    if pixels.shape != (16, 24, 3) or np.abs(pixels - colour).max() > 8:
        return Check(name, "FAIL", f"a JPEG of 24 x 16 pixels came out as {pixels.shape}, other colours", REINSTALL)
    return Check(name, "ok", f"{len(data)} bytes decode to 24 x 16 pixels of the right colour")


def wandb(name: str) -> Check:
    """Whether runs can be uploaded; asks only this machine."""
    mode, host = os.environ.get("WANDB_MODE"), urlsplit(os.environ.get("WANDB_BASE_URL") or _WANDB).hostname or ""
    stated = f"WANDB_MODE={mode}" if mode else "offline unless track.wandb says otherwise"
    try:
        where = _key(host)
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError) as error:
        # Not what it says: that may quote the word that should not be there, which may be the key.
        found = f"{stated}; the netrc file cannot be read ({type(error).__name__})"
        return Check(name, "warn", found, "wandb login --relogin")
    if where:
        return Check(name, "ok", f"{stated}; an API key for {host} is in {where}")
    if mode == "online":
        return Check(name, "warn", f"{stated}, but there is no API key for {host}", "wandb login")
    return Check(name, "ok", f"{stated}; no API key for {host}, which only uploading needs (wandb login)")


def _key(host: str) -> str | None:
    """Where an API key for `host` is configured."""
    if os.environ.get("WANDB_API_KEY"):
        return "WANDB_API_KEY"
    asked = os.environ.get("NETRC")
    for path in [Path(asked)] if asked else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        if path.is_file() and host in netrc.netrc(path).hosts:
            return str(path)
    return None


def _least(name: str) -> str:
    """The oldest version that alasca's own metadata allows."""
    for line in importlib.metadata.requires("alasca") or []:
        if found := re.match(rf"{re.escape(name)}\s*>=\s*([\d.]+)", line, re.IGNORECASE):
            return found[1]
    return "0"


def _numbers(version: str) -> list[int]:
    release = re.match(r"\d+(\.\d+)*", version)
    return [int(part) for part in release[0].split(".")] if release else []
