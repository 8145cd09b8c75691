"""States as safetensors files, written by hand and read by the library."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.train import packed


def write(path: Path, state: Any) -> dict[str, Any]:
    return packed.write(path, *packed.flatten(state))


def test_a_nested_state_comes_back(tmp_path: Path) -> None:
    state = {
        "state": {0: {"momentum_buffer": torch.randn(3, 4), "step": 7}, 1: {"momentum_buffer": torch.randn(2)}},
        "param_groups": [{"lr": 0.1, "nesterov": False, "maximize": None, "params": [0, 1]}, {"params": []}],
        "bank/odd name": {"start": 3, "rows": torch.randn(0, 5)},
        "text": "ähre",
        "scalar": torch.tensor(5),
        "types": [torch.ones(3, dtype=dtype) for dtype in packed._DTYPES],
    }
    entry = write(tmp_path / "x.safetensors", state)
    back = packed.read(tmp_path / "x.safetensors")
    flat, tree = packed.flatten(state)
    again, same = packed.flatten(back)
    assert same == tree
    assert flat.keys() == again.keys()
    for name, tensor in flat.items():
        assert torch.equal(tensor, again[name]) and tensor.dtype == again[name].dtype
    content = (tmp_path / "x.safetensors").read_bytes()
    assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_others_read_it(tmp_path: Path) -> None:
    tensors = {"conv.weight": torch.randn(4, 3, 3, 3), "bn.num_batches_tracked": torch.tensor(9)}
    packed.write(tmp_path / "m.safetensors", tensors)
    found = load_file(tmp_path / "m.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_large_tensor_goes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_CHUNK", 1000)
    state = {"rows": torch.randn(333, 7)}
    write(tmp_path / "x", state)
    assert torch.equal(packed.read(tmp_path / "x")["rows"], state["rows"])


def test_what_is_read_can_be_changed_without_changing_the_file(tmp_path: Path) -> None:
    write(tmp_path / "x", {"rows": torch.zeros(1000)})
    before = (tmp_path / "x").read_bytes()
    for copy in (False, True):
        packed.read(tmp_path / "x", copy=copy)["rows"].add_(1)
        assert (tmp_path / "x").read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:20],
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data.replace(b"tree", b"twig"),
        lambda data: data.replace(b'\\"dict\\"', b'\\"dic\\" '),
    ],
)
def test_a_damaged_file_is_no_state(tmp_path: Path, damage: Any) -> None:
    write(tmp_path / "x", {"rows": torch.zeros(10), "n": 3})
    (tmp_path / "x").write_bytes(damage((tmp_path / "x").read_bytes()))
    with pytest.raises(ValueError, match="no state can be read"):
        packed.read(tmp_path / "x")
