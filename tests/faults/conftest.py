"""Datasets that a fault can hit: shards of photographs, and shards that all have one length."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rawsmall import make_fashion

from shards.build import build
from shards.manifest import Manifest
from shards.readers import idx


@pytest.fixture
def copied(photos: Manifest, tmp_path: Path) -> Manifest:
    """120 photographs in shards of 25, free to be damaged once it is open."""
    return Manifest.load(shutil.copytree(photos.root, tmp_path / "copied"))


@pytest.fixture(scope="session")
def equal(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Manifest]:
    """360 pictures of one size in four shards of one length, in the order of a seed; never to be changed."""
    folder = tmp_path_factory.mktemp("equal")
    make_fashion(folder / "raw", 360)

    def built(seed: int) -> Manifest:
        out = folder / str(seed) / "train"
        if out.exists():
            return Manifest.load(out)
        return build(idx.read(folder / "raw", None), out, seed=seed, samples_per_shard=90, workers=1)

    return built


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again at once."""
    monkeypatch.setattr("shards.store._FIRST_WAIT", 0.05)
