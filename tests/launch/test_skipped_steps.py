"""Two ranks, one of which meets pixels that are not finite: neither takes the step, and both go on alike."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.record.track import read_metrics
from pipeline.train import packed
from pipeline.train.checkpoint import read_index
from shards.manifest import Manifest
from tests.conftest import unlaunched

ROOT = Path(__file__).parents[2]
MOVING = {"fc.weight", "bn1.running_var", "bn1.num_batches_tracked", "momentum 0", "bank 0", "bank 1"} | {
    *("average fc.weight", "average bn1.running_var")
}

# A run as launch/train.py starts it, but rank 1 sees NaN in its second micro-batch of step 3 (from 1).
SPOILED = """
import os, sys, torch
from pipeline.cli import run
from pipeline.train.network import Network

forward, seen = Network.__call__, 0

def spoil(self, images):
    global seen
    if not self._module.training:
        return forward(self, images)
    seen += 1
    if os.environ["RANK"] == "1" and seen == 6:
        nan = self._module.register_forward_pre_hook(lambda module, args: (args[0] * float("nan"),))
        try:
            return forward(self, images)
        finally:
            nan.remove()
    return forward(self, images)

Network.__call__ = spoil
run(["train", *sys.argv[1:]])
"""


@pytest.mark.timeout(300)
def test_what_one_rank_meets_no_rank_takes(photos: Manifest, tmp_path: Path) -> None:
    config, script = tmp_path / "tiny.toml", tmp_path / "spoiled.py"
    script.write_text(SPOILED)
    config.write_text(
        f"""
        run = {{ dir = "{tmp_path}" }}
        data = {{ train = "{photos.root}", lanes = 4, micro_batch = 6, crop = 16, workers = 0 }}
        model = {{ name = "resnet20" }}
        optim = {{ epochs = 1, lr = 0.05, ema = 0.9 }}
        track = {{ every = 1, wandb = "disabled" }}
        checkpoint = {{ every_steps = 1, keep = 9 }}
        """
    )
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), str(config)]
    ended = subprocess.run(
        [sys.executable, *command],
        env={**unlaunched(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    records = read_metrics(tmp_path / "tiny")
    (record,) = (r for r in records if r["kind"] == "nonfinite")
    assert (record["step"], record["loss_lanes"], record["statistics"], record["gradient"]) == (3, [3], True, True)
    assert len(record["ids"]) == 24
    assert [r["loss"] is None for r in records if r["kind"] == "train"] == [False, False, True, False, False]

    def saved(step: int) -> dict[str, torch.Tensor]:
        folder = tmp_path / "tiny" / "checkpoints" / f"step-{step:09d}"
        state = load_file(folder / "model.safetensors")
        state |= {f"average {name}": tensor for name, tensor in load_file(folder / "ema.safetensors").items()}
        for i, one in packed.read(folder / "optimizer.safetensors", copy=True)["state"].items():
            state[f"momentum {i}"] = one["momentum_buffer"]
        for rank in (0, 1):
            own = packed.read(folder / f"rank-{rank:05d}.safetensors", copy=True)
            state[f"bank {rank}"] = own["alasca"]["rows"]
        assert read_index(folder)["nonfinite"] == (step == 3)
        return state

    states = [saved(step) for step in range(1, 6)]
    changed = [sorted(name for name in a if not torch.equal(a[name], b[name])) for a, b in itertools.pairwise(states)]
    assert changed[1] == []
    for names in (changed[0], changed[2], changed[3]):
        assert {*names} >= MOVING
    assert all(tensor.isfinite().all() for state in states for tensor in state.values())
