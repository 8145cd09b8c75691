import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import noise
from shards.build import build
from shards.manifest import Manifest
from shards.readers import imagefolder

CLASSES = ("apple, red", "bird", "ähre.v1")
SHARD = 7


def picture(seed: int, width: int = 24, height: int = 18, mode: str = "RGB") -> Image.Image:
    """Smooth enough for JPEG to be a photograph, different for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture(name="picture", scope="session")
def picture_fixture() -> Callable[..., Image.Image]:
    return picture


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images in three classes, of all formats, some nested, with awkward names."""
    root = tmp_path_factory.mktemp("raw")
    for index in range(60):
        folder = root / CLASSES[index % 3] / ("deep/er" if index % 5 == 0 else "")
        folder.mkdir(parents=True, exist_ok=True)
        suffix = (".jpg", ".JPEG", ".png", ".webp")[index % 4]
        picture(index, 20 + index, 70 - index, "P" if index % 8 == 2 else "RGB").save(
            folder / f"im,{index:02d}.v2 ü{suffix}"
        )
    return root


@pytest.fixture(scope="session")
def built(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A dataset folder with noise; never to be changed: tests that damage it copy it."""
    out = tmp_path_factory.mktemp("built") / "train"
    return build(
        imagefolder.read(raw, None),
        out,
        seed=3,
        noise=noise.parse("symmetric:0.3"),
        samples_per_shard=SHARD,
        workers=1,
    )


@pytest.fixture
def copied(built: Manifest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built.root, tmp_path / "copied"))


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """All files of a folder, hidden ones included."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}

    return read
