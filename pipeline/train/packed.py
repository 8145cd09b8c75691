"""A nested state as one safetensors file: tensors by their path, all else as JSON in its header. Nothing is pickled."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_CHUNK = 1 << 24  # bytes that are hashed and written in one go
_TREE = "tree"


def flatten(state: Any, path: str = "") -> tuple[dict[str, torch.Tensor], Any]:
    """Part a state into its tensors, by path, and a tree of JSON values that says where each belongs.

    A state is a dict (keys: str or int), list or tuple of states, a tensor, or what JSON has.
    """
    if isinstance(state, torch.Tensor):
        return {path: state}, {"tensor": path}
    if isinstance(state, dict):
        parts = [(key, flatten(value, f"{path}/{key}" if path else str(key))) for key, value in state.items()]
        tensors = {name: tensor for _, (found, _) in parts for name, tensor in found.items()}
        return tensors, {"dict": [[key, tree] for key, (_, tree) in parts]}
    if isinstance(state, list | tuple):
        items = [flatten(value, f"{path}/{i}" if path else str(i)) for i, value in enumerate(state)]
        return {n: t for found, _ in items for n, t in found.items()}, {"list": [tree for _, tree in items]}
    assert state is None or isinstance(state, bool | int | float | str), (path, type(state))
    return {}, {"value": state}


def write(
    path: Path, tensors: dict[str, torch.Tensor], tree: Any = None, *, written: Callable[[int], None] = lambda n: None
) -> dict[str, Any]:
    """Write host tensors, contiguous, and a tree to a new file, and wait until it is on the disk.

    Returns:
        {"bytes": its length, "sha256": its digest in hex}.
    """
    digest, length = hashlib.sha256(), 0
    with path.open("xb") as file:
        for chunk in _chunks(tensors, tree):
            digest.update(chunk)
            file.write(chunk)
            length += len(chunk)
            written(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": length, "sha256": digest.hexdigest()}


def read(path: Path, copy: bool = False) -> Any:
    """Return a state that was flattened and written; unless copied, its tensors are views of the file.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            tree = json.loads((file.metadata() or {})[_TREE])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return _restored(tree, {name: t.clone() for name, t in tensors.items()} if copy else tensors)
    except (SafetensorError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: no state can be read ({error})") from None


def _chunks(tensors: dict[str, torch.Tensor], tree: Any) -> Iterator[bytes | memoryview]:
    header: dict[str, Any] = {} if tree is None else {"__metadata__": {_TREE: json.dumps(tree)}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors.values():
        assert tensor.is_contiguous() and tensor.device.type == "cpu"
        raw = tensor.detach().reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(raw), _CHUNK):
            yield raw[start : start + _CHUNK]


def _restored(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _restored(value, tensors) for key, value in content}
    if kind == "list":
        return [_restored(value, tensors) for value in content]
    if kind != "value":
        raise KeyError(kind)
    return content
