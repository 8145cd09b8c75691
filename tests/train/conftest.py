"""One process group for every in-process test: DeepSpeed starts once."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import configfile
from pipeline.config import Config
from pipeline.train import dist
from pipeline.train.dist import World
from shards.manifest import Manifest


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    yield dist.start(60)
    dist.stop()


@pytest.fixture
def configured(photos: Manifest, clean_photos: Manifest, tmp_path: Path) -> Callable[..., Config]:
    """A tiny run; keyword `section__key=value` changes it."""

    def make(**changes: Any) -> Config:
        tables: dict[str, Any] = {
            "run": {"dir": str(tmp_path / "runs")},
            "data": {"train": str(photos.root), "lanes": 4, "micro_batch": 6, "crop": 16, "workers": 0},
            "model": {"name": "resnet20"},
            "optim": {"epochs": 2, "lr": 0.05},
            "track": {"every": 2, "wandb": "disabled"},
            "eval": {"test": {"data": str(clean_photos.root)}},
        }
        for dotted, value in changes.items():
            section, key = dotted.split("__")
            tables.setdefault(section, {})[key] = value
        return configfile.parse(tables, name="tiny", where="test")

    return make
