import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rawsmall import CIFAR10, make_cifar10, make_cifar100, python2, torch_zip

from shards.errors import InputError
from shards.readers import cifar
from shards.readers.record import Record

SETS = ("aggre_label", "worse_label", "random_label1", "random_label2", "random_label3")


def fails(words: str, call: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def pixels(record: Record) -> np.ndarray:
    assert isinstance(record.content, bytes)
    with Image.open(io.BytesIO(record.content)) as image:
        assert (image.mode, image.size, image.format) == ("RGB", (32, 32), "PNG")
        return np.asarray(image)


def test_cifar10_is_the_original_in_the_order_of_the_batches(tmp_path: Path) -> None:
    planes, labels, _ = make_cifar10(tmp_path)
    for root in (tmp_path, tmp_path / "cifar-10-batches-py"):
        train, test = cifar.read(root, None), cifar.read(root, "test")
        assert (train.split, train.classes, len(train.records), len(test.records)) == ("train", CIFAR10, 40, 8)
        assert train.options == {"dataset": "CIFAR-10", "label_set": None}
        assert train.notes == ("40 images; CIFAR-10 has 50,000 in train",)
        assert [*train.records] == sorted(train.records, key=lambda record: record.key)
        for i, record in enumerate([*train.records, *test.records]):
            assert record.key == (f"train/{i:05d}.png" if i < 40 else f"test/{i - 40:05d}.png")
            assert record.label == record.clean_label == labels[i]
            for channel in range(3):
                plane = planes[i, 1024 * channel : 1024 * (channel + 1)]
                assert np.array_equal(pixels(record)[..., channel].ravel(), plane)


def test_cifar100_has_its_fine_labels(tmp_path: Path) -> None:
    labels = make_cifar100(tmp_path)
    train, test = cifar.read(tmp_path, "train"), cifar.read(tmp_path / "cifar-100-python", "test")
    assert train.classes == test.classes == tuple(f"fine {i:02d}" for i in range(100))
    assert [record.label for record in train.records] == labels
    assert [record.label for record in test.records] == labels[::-1]


@pytest.mark.parametrize(
    ("asked", "name"),
    [("worst", "worse_label"), ("worse", "worse_label"), ("Aggre", "aggre_label"), ("random2", "random_label2")]
    + [(name, name) for name in SETS],
)
def test_human_labels_by_their_names(tmp_path: Path, asked: str, name: str) -> None:
    _, labels, sets = make_cifar10(tmp_path)
    source = cifar.read(tmp_path, "train", str(tmp_path / "CIFAR-10_human.pt"), asked)
    assert [record.label for record in source.records] == sets[name].tolist()
    assert [record.clean_label for record in source.records] == labels[:40]
    assert source.options["label_set"] == name
    wrong = np.count_nonzero(sets[name] != labels[:40])
    assert source.notes[0] == f"{name}: {wrong} of 40 labels ({wrong / 40:.2%}) differ from the clean ones"


def write_sets(file: Path, kind: str, sets: dict[str, Any]) -> str:
    if kind == "npy":
        np.save(file, sets)
    elif kind == "csv":
        rows = [",".join(sets), *(",".join(map(str, row)) for row in zip(*sets.values(), strict=True))]
        file.write_text("\n".join(rows) + "\n")
    elif kind == "zip":
        file.write_bytes(torch_zip(sets))
    else:  # torch.save before 1.6: magic number, version, machine, the object, storages
        parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, sets, [])
        file.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))
    return str(file)


@pytest.mark.parametrize(("kind", "suffix"), [("npy", "npy"), ("csv", "csv"), ("zip", "pt"), ("old", "pt")])
def test_human_labels_in_every_format(tmp_path: Path, kind: str, suffix: str) -> None:
    labels = make_cifar100(tmp_path)
    noisy = [(label + 1) % 100 for label in labels]
    sets = {"clean_label": np.array(labels), "noisy_label": np.array(noisy, dtype=np.uint8)}
    source = cifar.read(tmp_path, "train", write_sets(tmp_path / f"human.{suffix}", kind, sets), "noisy")
    assert [(record.label, record.clean_label) for record in source.records] == list(zip(noisy, labels, strict=True))


@pytest.mark.parametrize("kind", ["npy", "csv"])
def test_human_labels_of_other_images_are_refused(tmp_path: Path, kind: str) -> None:
    labels = make_cifar100(tmp_path)
    good = {"clean_label": np.array(labels), "noisy_label": np.array(labels)}

    def read(**changes: np.ndarray) -> object:
        return cifar.read(tmp_path, None, write_sets(tmp_path / f"human.{kind}", kind, good | changes), "noisy")

    read()
    other = np.array(labels)
    other[3:5] += 1
    fails(
        rf"not the batches' label at 2 of 12 images \(first image 3: {labels[3] + 1} here, {labels[3]} there",
        lambda: read(clean_label=other),
    )
    fails(
        "noisy_label of image 2 is 100, none of 0 to 99",
        lambda: read(noisy_label=np.where(np.arange(12) == 2, 100, labels)),
    )
    short = {name: values[:11] for name, values in good.items()}
    fails("clean_label has 11 labels for 12 images", lambda: read(**short))


def test_what_the_label_options_need(tmp_path: Path) -> None:
    make_cifar10(tmp_path)
    file = str(tmp_path / "CIFAR-10_human.pt")
    fails("name one of its sets with --label-set: aggre_label, worse_label", lambda: cifar.read(tmp_path, None, file))
    fails("--label-set worst: give the file", lambda: cifar.read(tmp_path, None, None, "worst"))
    fails("--label-set noisy: CIFAR-10N has aggre_label", lambda: cifar.read(tmp_path, None, file, "noisy"))
    fails("only train has human labels", lambda: cifar.read(tmp_path, "test", file, "worst"))
    fails("must end in .pt, .npy or .csv", lambda: cifar.read(tmp_path, None, "labels.txt", "worst"))
    fails("no-such.npy: cannot be read", lambda: cifar.read(tmp_path, None, "no-such.npy", "worst"))
    lacking = write_sets(tmp_path / "some.npy", "npy", {"clean_label": np.arange(40)})
    fails("no label set 'worse_label'; it holds clean_label", lambda: cifar.read(tmp_path, None, lacking, "worst"))
    (tmp_path / "text.csv").write_text("clean_label,worse_label\n3,cat\n")
    fails(
        "text.csv line 2: worse_label is 'cat'", lambda: cifar.read(tmp_path, None, str(tmp_path / "text.csv"), "worst")
    )
    (tmp_path / "cut.csv").write_text("clean_label,worse_label\n3,10\n3,1")
    fails(
        "cut.csv line 3: '3,1' has no line end", lambda: cifar.read(tmp_path, None, str(tmp_path / "cut.csv"), "worst")
    )
    np.save(tmp_path / "plain.npy", np.arange(40))
    fails("holds a plain array int64", lambda: cifar.read(tmp_path, None, str(tmp_path / "plain.npy"), "worst"))


def test_missing_and_other_files(tmp_path: Path) -> None:
    fails("--root FOLDER is needed", lambda: cifar.read(None, None))
    fails("no CIFAR batches in it.*data_batch_3.*CIFAR-100: meta, train, test", lambda: cifar.read(tmp_path, None))
    fails("splits train and test", lambda: cifar.read(tmp_path, "val"))
    make_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py/data_batch_3").unlink()
    fails("data_batch_3 missing; CIFAR-10 has batches.meta", lambda: cifar.read(tmp_path, None))
    assert len(cifar.read(tmp_path, "test").records) == 8
    make_cifar100(tmp_path)
    fails("two datasets", lambda: cifar.read(tmp_path, None))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": [10] * 8}, "label 10 is none of 0 to 9"),
        ({"labels": [1] * 7}, "no label for each of its 8 images"),
        ({"data": np.zeros((8, 3071), np.uint8)}, "no images"),
        ({"data": np.zeros((8, 3072), np.int8)}, "no images"),
    ],
)
def test_damaged_batches(tmp_path: Path, change: dict[str, object], words: str) -> None:
    make_cifar10(tmp_path)
    batch = {"labels": [1] * 8, "data": np.zeros((8, 3072), np.uint8)}
    file = tmp_path / "cifar-10-batches-py/data_batch_2"
    file.write_bytes(python2(batch | change))
    fails(f"data_batch_2: {words}", lambda: cifar.read(tmp_path, None))
    file.write_bytes(python2(batch)[:-9])
    fails("data_batch_2: damaged or no pickle", lambda: cifar.read(tmp_path, None))


class Touch:
    """A pickle of this runs a command where it is loaded freely."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.file), "w")


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_runs_nothing(tmp_path: Path, protocol: int) -> None:
    make_cifar10(tmp_path)
    owned = tmp_path / "owned"
    evil = {"labels": [1] * 8, "data": Touch(owned), "clean_label": Touch(owned)}
    pickle.loads(pickle.dumps(evil, protocol))["data"].close()
    assert owned.exists()  # it does work
    owned.unlink()
    (tmp_path / "cifar-10-batches-py/data_batch_1").write_bytes(pickle.dumps(evil, protocol))
    fails("data_batch_1: names '(_io|io).open', neither an array nor a container", lambda: cifar.read(tmp_path, None))
    make_cifar10(tmp_path / "good")
    np.save(tmp_path / "evil.npy", np.array(evil, dtype=object))
    (tmp_path / "evil.pt").write_bytes(torch_zip(evil))
    for name in ("evil.npy", "evil.pt"):
        fails("neither an array", lambda n=name: cifar.read(tmp_path / "good", None, str(tmp_path / n), "worst"))
    assert not owned.exists()
