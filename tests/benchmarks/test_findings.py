"""The lists, the recipes and their toy versions are what `benchmarks.findings` trains on."""

import csv
import tomllib
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import cifar, findings
from pipeline import configfile
from shards.errors import InputError
from shards.manifest import Manifest
from tests.conftest import make_raw

CLASSES, EACH = 3, 12
NAMES = [f"class-{k}" for k in range(CLASSES)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some images in the folders of the real one."""
    folder = tmp_path_factory.mktemp("cifar")
    for split in ("train", "test"):
        make_raw(folder / split, each=EACH, size=(32, 32))
    with zipfile.ZipFile(folder / "images.zip", "w") as packed:
        for path in sorted(folder.rglob("*.jpg")):
            packed.write(path, path.relative_to(folder))
    return folder / "images.zip"


@pytest.fixture(scope="module")
def labels(archive: Path) -> Path:
    """A third of the images has a wrong human label."""
    classes = sorted(path.name for path in (archive.parent / "train").iterdir())
    lines = ["path,clean,aggre,worst"]
    for number, name in enumerate(classes):
        for index, path in enumerate(sorted((archive.parent / "train" / name).iterdir())):
            human = (number + 1) % len(classes) if index % 3 == 0 else number
            lines.append(f"{path.relative_to(archive.parent).as_posix()},{number},{number},{human}")
    file = archive.parent / "labels.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_the_datasets_hold_the_asked_images_with_their_labels(archive: Path, labels: Path, tmp_path: Path) -> None:
    sets = (
        findings.Data("clean", 4, human=False, noise="symmetric:0.5"),
        findings.Data("people", None, human=True),
    )
    findings.prepare(archive, labels, sets, tmp_path, test_of_each=5)
    classes = len(cifar.read(labels, NAMES)) // EACH
    few, people, test = (Manifest.load(tmp_path / name) for name in ("clean", "people", "test"))
    assert Counter(few.clean_labels.tolist()) == dict.fromkeys(range(classes), 4)
    assert (few.labels != few.clean_labels).mean() == pytest.approx(0.5, abs=0.1)
    assert people.num_samples == classes * EACH
    assert (people.labels != people.clean_labels).mean() == pytest.approx(1 / 3)
    assert test.num_samples == classes * 5
    again = (tmp_path / "clean" / "manifest.json").read_bytes()
    findings.prepare(archive, labels, sets, tmp_path, test_of_each=5)
    assert (tmp_path / "clean" / "manifest.json").read_bytes() == again


def test_a_draw_takes_as_many_of_each_class_and_the_same_ones_each_time(labels: Path) -> None:
    images = cifar.read(labels, NAMES)
    drawn = cifar.drawn(images, 5)
    assert Counter(image.clean for image in drawn) == dict.fromkeys({image.clean for image in images}, 5)
    assert len(set(drawn)) == len(drawn)
    assert drawn == cifar.drawn(images, 5)
    assert cifar.drawn(images, None) == images
    with pytest.raises(InputError, match="12 images of class 0, 13 of each are drawn"):
        cifar.drawn(images, 13)


def test_the_published_labels_are_joined_by_their_order(tmp_path: Path) -> None:
    clean = [2, 0, 2, 1, 0, 2]
    file = tmp_path / "CIFAR-10_human.pt"
    torch.save({"clean_label": np.array(clean), "worse_label": np.array([2, 1, 1, 1, 0, 0])}, file)
    assert cifar.read(file, NAMES) == [
        ("train/class-2/0000.jpg", 2, 2),
        ("train/class-0/0000.jpg", 0, 1),
        ("train/class-2/0001.jpg", 2, 1),
        ("train/class-1/0000.jpg", 1, 1),
        ("train/class-0/0001.jpg", 0, 0),
        ("train/class-2/0002.jpg", 2, 0),
    ]
    torch.save({"clean_label": np.array(clean)}, file)
    with pytest.raises(InputError, match="CIFAR-10_human.pt: no label set 'worse_label'"):
        cifar.read(file, NAMES)


def test_what_cannot_be_read_is_named(archive: Path, labels: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.zip"
    broken.write_bytes(archive.read_bytes()[:100])
    with pytest.raises(InputError, match=r"broken.zip"):
        cifar.unpack(broken, tmp_path / "raw")
    with zipfile.ZipFile(broken, "w") as packed:
        packed.writestr("CIFAR-10-images-master/train/cat/0000.jpg", b"")
    with pytest.raises(
        InputError, match=r"broken.zip: has CIFAR-10-images-master at its top; it must be a zip of train"
    ):
        cifar.unpack(broken, tmp_path / "raw")
    with labels.open() as file:
        rows = [{key: value for key, value in row.items() if key != "worst"} for row in csv.DictReader(file)]
    short = tmp_path / "short.csv"
    with short.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(InputError, match=r"short.csv.*worst"):
        cifar.read(short, NAMES)


@pytest.mark.parametrize("finding", findings.FINDINGS)
def test_the_recipes_are_whole_and_differ_in_the_method_alone(finding: str, tmp_path: Path) -> None:
    sets, recipes = findings.FINDINGS[finding]
    trained = set()
    for name in recipes:
        for path in (findings.RECIPES / f"{name}.toml", findings.toy(findings.RECIPES / f"{name}.toml", tmp_path)):
            tables = tomllib.loads(path.read_text())
            configs = {}
            for method, changes in tables["methods"].items():
                base = configfile.read_toml(tables["config"])
                configfile.merge(base, changes)
                configs[method] = configfile.parse(base, name=method, where=str(path))
            first = next(iter(configs.values()))
            for config in configs.values():
                assert (config.data, config.optim.epochs, config.engine) == (
                    first.data,
                    first.optim.epochs,
                    first.engine,
                )
            trained.add(first.data.train)
            assert {tables["baseline"], tables.get("reference", tables["baseline"])} <= set(configs)
    names = {data.name for data in sets}
    assert trained == {f"{folder}/{name}" for name in names for folder in (findings.HERE, tmp_path)}
