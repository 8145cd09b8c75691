"""A tiny run to change at will."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import configfile
from pipeline.config import Config
from shards.manifest import Manifest


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
