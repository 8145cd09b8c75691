"""The benchmark of the data plane runs at toy length and counts right. Speed itself is never asserted."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import decoding, workers
from benchmarks.loader import main
from pipeline.data.loader import TrainBatches
from pipeline.data.plan import Plan
from shards.manifest import Manifest
from tests.conftest import make_raw


@pytest.fixture(scope="module")
def photos_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    make_raw(folder / "train", each=12, size=(300, 280))
    return folder


def numbers(found: Any) -> list[float]:
    if isinstance(found, dict):
        return [number for value in found.values() for number in numbers(value)]
    if isinstance(found, list):
        return [number for value in found for number in numbers(value)]
    return [found] if isinstance(found, int | float) else []


def test_every_part_measures_something(photos_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--workers 0 --crop 32 --batch 4 --images 12 --decoded 6 --repeats 2 --samples 5000".split()  # noqa: SIM905
    parts = ["--parts", "decoding", "loaders", "resize", "sharding", "plan"]
    file = tmp_path / "found.json"
    where = ["--scratch", str(tmp_path / "scratch"), "--json", str(file)]
    assert main([str(photos_folder), *words, *where, *parts]) == 0
    found, said = json.loads(file.read_text()), capsys.readouterr().out
    rates = found["loaders"]["images_per_s"]
    for name in ("ours", "ours, bare loop", "ours, bytes only", "webdataset, Pillow", "ImageFolder, bytes only"):
        assert len(rates[name]) == 2
        assert f"| {name} " in said
    assert set(found["loaders"]["absent"]) >= {"ffcv"} - set(rates)
    assert found["resize"]["bytes"]["256"] < found["resize"]["bytes"]["as they are"]
    for part in ("loaders", "resize", "sharding", "plan"):
        measured = numbers(found[part])
        assert measured and all(math.isfinite(number) for number in measured)
    assert not list((tmp_path / "scratch").iterdir())


def test_every_way_to_decode_makes_the_same_picture(photos_folder: Path) -> None:
    """Or one would be timed at other work."""
    files = sorted(photos_folder.glob("train/*/*.jpg"))[:4]
    found = decoding.measure([path.read_bytes() for path in files], crop=64, repeats=1)
    assert found["distance"][decoding.OURS]["mean"] <= 1
    assert found["distance"][decoding.OURS]["p95"] <= 2
    assert all(distance["mean"] < 6 for distance in found["distance"].values())
    assert found["distance"]["torchvision v2 on PIL, uint8"]["worst_image_mean"] == 0


def test_memory_is_that_of_each_worker(photos: Manifest, tmp_path: Path) -> None:
    large = workers.repeated(photos, tmp_path / "large", 1000)
    assert large.num_samples == 1000
    plan = Plan(large, lanes=8, micro_batch=8, seed=0)
    batch = TrainBatches(large, plan, large.labels, crop=16, augment="none", flip=False, max_pixels=10**6)[0, 0, 3]
    assert batch.valid.all()
    assert np.isin(batch.labels.numpy(), photos.labels[:25]).all()
    found = workers.of_a_table({"large": large}, batches=4, workers=2, crop=16)["datasets"]["large"]
    assert len(found["memory"]) == 2
    assert all(0 < memory["PSS"] <= memory["RSS"] for memory in found["memory"])
    assert all(memory["own"] < memory["RSS"] for memory in found["memory"])


def test_what_is_no_photographs_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert f"{tmp_path}: give a zip file or a folder that holds train/CLASS/*.jpg\n" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere.zip")]) == 2
