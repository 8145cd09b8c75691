"""What every test shares: small datasets, and an environment that does not reach out."""

import os

# One thread: two cores, often shared, and the same sums on every machine. Read when torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["WANDB_ERROR_REPORTING"] = "false"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from shards.build import build
from shards.manifest import Manifest
from shards.noise import parse
from shards.readers import find

if TYPE_CHECKING:
    from pipeline.train.dist import World

MakeRaw = Callable[..., Path]


def make_raw(root: Path, classes: int = 3, each: int = 40, size: tuple[int, int] = (24, 18), seed: int = 0) -> Path:
    """An image folder whose classes are told apart by colour, under pixel noise."""
    rng = np.random.default_rng(seed)
    for label in range(classes):
        folder = root / f"class-{label}"
        folder.mkdir(parents=True)
        colour = np.eye(3)[label % 3] * 120 + 60 * (label // 3)
        for number in range(each):
            pixels = np.clip(colour + rng.normal(0, 40, (*size, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:04d}.jpg", quality=90)
    return root


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 JPEG files in three class folders."""
    return make_raw(tmp_path_factory.mktemp("raw") / "images")


@pytest.fixture(scope="session")
def photos(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The same as shards of 25, with 20 % wrong labels."""
    source = find("imagefolder")(raw, None)
    out = tmp_path_factory.mktemp("shards") / "train"
    return build(source, out, noise=parse("symmetric:0.2"), samples_per_shard=25, workers=1)


@pytest.fixture(scope="session")
def clean_photos(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """47 other images of the same classes, as shards of 10."""
    folder = tmp_path_factory.mktemp("clean")
    raw = make_raw(folder / "images", each=16, seed=1)
    (raw / "class-0" / "0000.jpg").unlink()
    return build(find("imagefolder")(raw, None), folder / "test", samples_per_shard=10, workers=1)


def unlaunched() -> dict[str, str]:
    """The environment for a command of its own: `world` leaves in this one what would look like a launcher's."""
    return {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


@pytest.fixture(scope="session")
def world() -> "Iterator[World]":
    """One process group for every in-process test: DeepSpeed starts once."""
    from pipeline.train import dist

    yield dist.start(60)
    dist.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first: real launchers."""
    items.sort(key=lambda item: "launch" not in item.path.parts)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where two processes run the tests: a file's stay together, and so do those in launch/.

    Not by xdist's groups: they change a name that pytest 9.2 does not read again, and group nothing.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            alone = file.endswith("test_compare.py")  # long, and does not mind company
            return "launchers" if "/launch/" in file and not alone else file

    return Files(config, log)
