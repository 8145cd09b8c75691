from collections.abc import Iterator
from pathlib import Path

import pytest
from rawsmall import make_tars
from server import Server, serving

from shards.cache import Cache


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shards.store._FIRST_WAIT", 0.05)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", seconds=3)


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    make_tars(tmp_path / "tree/tars")
    return tmp_path / "tree/tars"


@pytest.fixture
def served(tars: Path) -> Iterator[Server]:
    with serving(tars.parent) as server:
        yield server
