"""Weights to start from: a local file or one of torchvision's, checked before they are taken over."""

import difflib
import http.client
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
from torch import nn

from shards.errors import InputError

WRAPPERS = ("state_dict", "model")
PREFIX = "module."
CLASSIFIER = ("fc.weight", "fc.bias")
SHOWN = 3


def load_pretrained(net: nn.Module, name: str, source: str) -> None:
    """Load `source` into `net`, a backbone `name` (ResNet-18, ...) that has no heads yet.

    `source` is a local file (torch state_dict, read without unpickling objects, or .safetensors) or a member of
    torchvision's weights for `name`. An outer {"state_dict": ...} or {"model": ...} and a `module.` before every key
    are taken off. The classifier is left as it is if the file has none (a self-supervised start) or if its number of
    classes is another one. Everything else must match, except BatchNorm's `num_batches_tracked`, which older files
    lack and nothing here reads.

    Raises:
        InputError: the source is unknown, unreadable, damaged, would need unpickling, or does not fit; or the download
            failed.
    """
    weights = _flatten(_read(name, source), source)
    wanted = net.state_dict()
    if _classes(weights) != _classes(wanted):
        weights = {key: value for key, value in weights.items() if key not in CLASSIFIER}
        wanted = {key: value for key, value in wanted.items() if key not in CLASSIFIER}
    _check(weights, wanted, name, source)
    net.load_state_dict(weights, strict=False)


def _read(name: str, source: str) -> Any:
    # resnet10 and resnet20 have no weights in torchvision.
    names: list[str] = []
    if name in torchvision.models.list_models(module=torchvision.models):
        names = list(torchvision.models.get_model_weights(name).__members__)
    if source in names:
        return _download(name, source)
    path = Path(source)
    if not path.is_file():
        near = difflib.get_close_matches(source, names, n=1, cutoff=0.5)
        mend = f'; did you mean "{near[0]}"?' if near else ""
        known = f"one of torchvision's weights ({', '.join(names)})" if names else "a torchvision name (there are none)"
        raise InputError(f'pretrained = "{source}" in [model]: neither a file nor {known} for {name}{mend}')
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Broad on purpose: a damaged file fails in a dozen ways (zip, pickle, header, storage), all of them the file's.
        reason = "it is damaged, or holds more than tensors; we never unpickle objects. Save net.state_dict() anew"
        raise InputError(f'pretrained = "{source}" in [model]: cannot be read: {reason} ({_line(error)})') from error


def _download(name: str, member: str) -> Any:
    weights = torchvision.models.get_model_weights(name)[member]
    try:
        return weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        mend = f"download {weights.url} elsewhere and set pretrained to that file"
        raise InputError(f'pretrained = "{member}" in [model]: no download ({_line(error)}); {mend}') from error


def _flatten(read: Any, source: str) -> dict[str, torch.Tensor]:
    """Take the wrappers off and keep only tensors under names."""
    while isinstance(read, Mapping) and (
        inner := next((k for k in WRAPPERS if isinstance(read.get(k), Mapping)), None)
    ):
        read = read[inner]
    if not isinstance(read, Mapping) or not read:
        raise InputError(f'pretrained = "{source}" in [model]: holds no state_dict; save net.state_dict()')
    foreign = next((key for key, value in read.items() if not isinstance(value, torch.Tensor)), None)
    if foreign is not None:
        raise InputError(f'pretrained = "{source}" in [model]: {foreign!r} is not a tensor; save net.state_dict()')
    if all(str(key).startswith(PREFIX) for key in read):
        return {str(key).removeprefix(PREFIX): value for key, value in read.items()}
    return {str(key): value for key, value in read.items()}


def _classes(weights: Mapping[str, torch.Tensor]) -> int | None:
    """Rows of the classifier, None where there is none."""
    if not all(key in weights for key in CLASSIFIER):
        return None
    return weights["fc.bias"].numel()


def _check(weights: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], name: str, source: str) -> None:
    where = f'pretrained = "{source}" in [model]'
    stem = weights.get("conv1.weight")
    if stem is not None and stem.shape != wanted["conv1.weight"].shape:
        mine, theirs = (f"{shape[2]}x{shape[3]}" for shape in (wanted["conv1.weight"].shape, stem.shape))
        mend = 'set stem = "imagenet", or start without pretrained weights'
        raise InputError(f"{where}: its {theirs} stem (conv1) does not fit this {mine} stem; {mend}")
    missing = [key for key in wanted if key not in weights and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in weights if key not in wanted]
    shapes = [key for key in wanted if key in weights and weights[key].shape != wanted[key].shape]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    found = "; ".join(f"{len(keys)} {what} ({_first(keys)})" for what, keys in wrong.items() if keys)
    if found:
        raise InputError(f"{where}: not the weights of a {name}: {found}; check name, or give another file")


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")


def _line(error: BaseException) -> str:
    """Return the first line of an error: torch's own run over many."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
