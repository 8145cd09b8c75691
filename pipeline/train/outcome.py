"""What summary.json says of a finished run."""

from typing import Any

import torch
from torch import nn

from pipeline.config import Config
from pipeline.data.plan import Plan
from pipeline.record.summary import summarise
from pipeline.train.dist import World
from pipeline.train.identity import versions
from shards.manifest import Manifest


def outcome(
    config: Config, plan: Plan, steps: int, module: nn.Module, world: World, sets: dict[str, Manifest]
) -> dict[str, Any]:
    """What it was, how it ran and what it reached; its identity is the caller's to add.

    Args:
        config: the run.
        plan: its batches.
        steps: all of them.
        module: the trained network.
        world: rank 0.
        sets: what it was evaluated on, by name.
    """
    return {
        "name": config.run.name,
        "steps": steps,
        "epochs": config.optim.epochs,
        "samples": steps * plan.global_batch,
        **summarise(config.folder, steps),
        "parameters": sum(p.numel() for p in module.parameters()),
        "world": world.size,
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
        "versions": versions(),
        "set_fingerprints": {name: manifest.fingerprint for name, manifest in sets.items()},
    }
