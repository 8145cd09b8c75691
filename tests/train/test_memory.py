"""A GPU out of memory: what the one line advises, and that a run ends with it."""

import pytest
import torch

from pipeline import cli
from pipeline.train.memory import advice, smaller_pieces

WORDS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 79.11 GiB of which 1.52 GiB is free."
    " Including non-PyTorch memory, this process has 77.58 GiB memory in use. Of the allocated memory 70.00 GiB is"
    " allocated by PyTorch, and 6.00 GiB is reserved by PyTorch but unallocated."
)


@pytest.mark.parametrize(
    ("now", "world", "smaller"),
    [
        ((8, 32), 4, (16, 16)),
        ((8, 25), 8, (40, 5)),  # no half: the next that divides
        ((1, 6), 1, (2, 3)),
        ((2, 9), 2, (6, 3)),
        ((4, 4), 4, (8, 2)),
        ((8, 7), 8, None),
        ((8, 3), 1, None),  # two of three would save too little
        ((4, 2), 1, None),
    ],
)
def test_smaller_pieces(now: tuple[int, int], world: int, smaller: tuple[int, int] | None) -> None:
    assert smaller_pieces(*now, world) == smaller


def test_smaller_pieces_are_of_the_same_global_batch_and_fit_the_processes() -> None:
    for world in (1, 2, 3, 8):
        for lanes in range(world, 25, world):
            for micro_batch in range(2, 40):
                found = smaller_pieces(lanes, micro_batch, world)
                if found is None:
                    assert micro_batch % 2 or micro_batch == 2
                    continue
                assert found[0] * found[1] == lanes * micro_batch
                assert found[0] % world == 0
                assert 2 <= found[1] <= micro_batch / 2


def test_the_line_says_all_that_would_help(configured) -> None:
    config = configured(data__lanes=8, data__micro_batch=64, engine__precision="float32")
    line = advice(config, 4, 9_600_000_000, WORDS)
    assert line.startswith("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 79.11 GiB of")
    assert "PyTorch" not in line
    assert "\n" not in line
    assert (
        "instead of data.micro_batch = 64 and data.lanes = 8, data.micro_batch = 32 and data.lanes = 16 keep the"
        in line
    )
    assert "global batch of 512 and need 50% of the memory for activations" in line
    assert "engine.bank_device = 'cpu' takes 9.6 GB off" in line
    assert "engine.precision = 'bfloat16'" in line
    config = configured(data__lanes=8, data__micro_batch=7)
    line = advice(config, 8, 0, WORDS)
    assert "cannot be cut smaller over 8 processes" in line
    assert "bank" not in line
    assert "bfloat16" not in line


@pytest.mark.parametrize(("where", "base", "saved"), [("step", "ce", "1.4e-06"), ("evaluation", "elr", "2.9e-06")])
def test_a_run_out_of_memory_ends_with_one_line(
    configured,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path,
    capsys: pytest.CaptureFixture[str],
    world,
    where: str,
    base: str,
    saved: str,
) -> None:
    from pipeline.train import dist
    from pipeline.train.network import Network

    forward = Network.__call__

    def exhausted(self: Network, images: torch.Tensor):
        if self._module.training == (where == "step"):
            raise torch.OutOfMemoryError(WORDS)
        return forward(self, images)

    monkeypatch.setattr(Network, "__call__", exhausted)
    monkeypatch.setattr(dist, "start", lambda timeout, met: world)
    monkeypatch.setattr(dist, "stop", lambda: None)
    config = configured(optim__epochs=1, method__base=base)
    file = tmp_path / "tiny.toml"
    file.write_text(config.to_toml())
    assert cli.main(["train", str(file)]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("alasca: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of")
    # 120 rows of 3 float32 numbers, for ALASCA and for ELR
    assert "data.micro_batch = 3 and data.lanes = 8" in error[-1]
    assert f"engine.bank_device = 'cpu' takes {saved} GB off" in error[-1]
    assert not any("Traceback" in line for line in error)
    assert not (config.folder / "summary.json").exists()
    assert not list(config.folder.glob("checkpoints/*"))
