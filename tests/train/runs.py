"""A run in this process, from its configuration to its end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline import configfile
from pipeline.config import Config
from pipeline.train.dist import World
from pipeline.train.inputs import Inputs
from pipeline.train.loop import Training
from shards.manifest import Manifest


def tiny(photos: Manifest, clean_photos: Manifest, folder: Path, **changes: Any) -> Config:
    """Two epochs of five steps, in a folder; keyword `section__key=value` changes it, `model__name` the whole model."""
    tables: dict[str, Any] = {
        "run": {"dir": str(folder)},
        "data": {"train": str(photos.root), "lanes": 4, "micro_batch": 6, "crop": 16, "workers": 0},
        "model": {"name": "resnet10", "width": 8, "stem": "small"},
        "optim": {"epochs": 2, "lr": 0.05},
        "track": {"every": 2, "wandb": "disabled"},
        "eval": {"test": {"data": str(clean_photos.root)}},
    }
    if "model__name" in changes:
        del tables["model"]
    for dotted, value in changes.items():
        section, key = dotted.split("__")
        tables.setdefault(section, {})[key] = value
    return configfile.parse(tables, name="tiny", where="test")


def in_evaluation(training: Training, batch: int, act: Callable[[], object]) -> None:
    """Have something happen before the forward of some evaluation batch, counted over all sets and evaluations."""
    forward, seen = training.engine.forward, 0

    def answering(images: torch.Tensor) -> Any:
        nonlocal seen
        seen += not training.engine.module.training
        if seen == batch and not training.engine.module.training:
            act()
        return forward(images)

    training.engine.forward = answering  # type: ignore[method-assign]


def trained(config: Config, world: World) -> Training:
    training = Training(config, Inputs.open(config, 1), world)
    try:
        training.run()
    finally:
        training.close()
    return training
