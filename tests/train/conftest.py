"""A tiny run to change at will."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from runs import tiny

from pipeline.config import Config
from shards.manifest import Manifest


@pytest.fixture
def configured(photos: Manifest, clean_photos: Manifest, tmp_path: Path) -> Callable[..., Config]:
    """A tiny run; keyword `section__key=value` changes it."""
    return partial(tiny, photos, clean_photos, tmp_path / "runs")
