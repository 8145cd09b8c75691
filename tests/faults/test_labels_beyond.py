"""A label that is no class: beyond any int, negative, a fraction, a truth value. One clear line from every reader."""

import gzip
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rawsmall import jpeg, make_cifar10, make_fashion, torch_zip, write_tar

from pipeline.data.selection import select
from pipeline.train.evaluate import open_dataset
from shards.cache import Cache
from shards.errors import InputError
from shards.manifest import Manifest
from shards.readers import cifar, csv, idx, lists, webdataset

BEYOND = {
    "above_int32": "2147483648",
    "above_int64": "9223372036854775808",
    "25_digits": "9" * 25,
    "5000_digits": "9" * 5000,
    "negative": "-1",
    "minus_25_digits": "-" + "9" * 25,
    "fraction": "1.5",
    "exponent": "1e3",
    "nan": "nan",
    "infinite": "inf",
    "bool": "True",
    "signed": "+1",
}

texts = pytest.mark.parametrize("text", BEYOND.values(), ids=BEYOND.keys())


def refused(words: str, call: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@texts
def test_a_label_beyond_int_range_in_a_list(tmp_path: Path, text: str) -> None:
    file, classes = tmp_path / "list.csv", tmp_path / "classes.txt"
    file.write_text(f"a.jpg,0\nb.jpg,1\nc.jpg,{text}\n")
    shown = text[:40].replace("+", r"\+").replace(".", r"\.")
    refused(f"list.csv line 3: label {shown}: integers count", lambda: csv.read(tmp_path, None, str(file)))
    classes.write_text("cat\ndog\n")
    refused(
        f"list.csv line 3: label '{shown[:39]}.* is none of the 2 classes",
        lambda: csv.read(tmp_path, None, str(file), str(classes)),
    )
    (tmp_path / "list.txt").write_text(f"a.jpg 0\nb.jpg {text}\n")
    refused("list.txt line 2: label", lambda: [*lists.entries(tmp_path / "list.txt", 2)])


def test_numbers_of_any_kind_among_names_are_names(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    for labels in (("cat", "7", "1.5"), ("01", "02", "10"), ("0.5", "1.5", "inf")):
        file.write_text("".join(f"{i}.jpg,{label}\n" for i, label in enumerate(labels)))
        assert csv.read(tmp_path, None, str(file)).classes == tuple(sorted(labels))


@texts
def test_a_label_beyond_int_range_in_cls(tmp_path: Path, text: str) -> None:
    members = [("a.jpg", jpeg(0)), ("a.cls", b"0"), ("b.jpg", jpeg(1)), ("b.cls", text.encode())]
    write_tar(tmp_path / "0.tar", members)
    refused("0.tar/b.jpg: label ", lambda: webdataset.read(tmp_path, None))


JSON = ["2147483648", "1" + "0" * 30, "9" * 5000, "-1", "1.5", "1e400", "NaN", "true", "[1]"]


@pytest.mark.parametrize("value", JSON, ids=lambda value: value[:12])
def test_a_label_beyond_int_range_in_json(tmp_path: Path, value: str) -> None:
    fields = {"a": b'{"x": 0}', "b": b'{"x": %s}' % value.encode()}
    members = [(f"{key}.{name}", data) for key in fields for name, data in (("jpg", jpeg(0)), ("json", fields[key]))]
    write_tar(tmp_path / "0.tar", members)
    refused(r"0.tar(/b\.jpg: label |: sample 'b': )", lambda: webdataset.read(tmp_path, None, "x"))


def test_a_label_beyond_int_range_in_idx(tmp_path: Path) -> None:
    make_fashion(tmp_path)
    file = tmp_path / "train-labels-idx1-ubyte.gz"
    labels = struct.pack(">BBBBI", 0, 0, 8, 1, 20) + bytes([255] * 20)
    file.write_bytes(gzip.compress(labels))
    refused("label 255 of image 0 is none of the 10 classes", lambda: idx.read(tmp_path, None))
    wide = struct.pack(">BBBBI20i", 0, 0, 12, 1, 20, *[2**31 - 1] * 20)  # integers of 32 bits
    file.write_bytes(gzip.compress(wide))
    refused("begins with 00 00 0c 01, not 00 00 08 01", lambda: idx.read(tmp_path, None))


PICKLED = [2**31, 2**63, 10**30, 10**5000, -1, -(10**5000), 1.5, float("nan"), True, None, "3"]


@pytest.mark.parametrize("value", PICKLED, ids=range(len(PICKLED)))
def test_a_label_beyond_int_range_in_a_pickle(tmp_path: Path, value: object) -> None:
    make_cifar10(tmp_path)
    batch = {"labels": [1] * 7 + [value], "data": np.zeros((8, 3072), np.uint8)}
    (tmp_path / "cifar-10-batches-py/data_batch_1").write_bytes(pickle.dumps(batch, 2))
    refused("data_batch_1: label .* is none of 0 to 9", lambda: cifar.read(tmp_path, None))


SETS = {
    "above_int32": np.full(40, 2**31),
    "above_int64": np.full(40, 2**63, np.uint64),
    "negative": np.full(40, -1),
    "fractions": np.full(40, 1.5),
    "whole_fractions": np.full(40, 3.0),
    "nan": np.full(40, np.nan),
    "bools": np.full(40, True),
    "5000_digits": [1] * 39 + [10**5000],
}


@pytest.mark.parametrize("values", SETS.values(), ids=SETS.keys())
def test_a_label_beyond_int_range_in_a_label_set(tmp_path: Path, values: object) -> None:
    sets = make_cifar10(tmp_path)[2]
    given = {"clean_label": sets["clean_label"], "worse_label": values}
    (tmp_path / "x.pt").write_bytes(torch_zip(given))
    words = "worse_label (of image 0 is .* none of 0 to 9|is no list of integers)"
    refused(words, lambda: cifar.read(tmp_path, None, str(tmp_path / "x.pt"), "worst"))


@texts
def test_a_label_beyond_int_range_in_an_overlay(tmp_path: Path, photos: Manifest, text: str) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(f"id,label\n0,1\n1,{text}\n")
    refused("labels.csv', line 3: .* is no class", lambda: select(photos, relabel=str(file)))


@pytest.mark.parametrize("column", ["label", "clean_label"])
@pytest.mark.parametrize("value", [3, 2**31 - 1, -(2**31)])
def test_a_label_beyond_the_classes_in_the_table_ends_a_run_before_it_begins(
    copied: Manifest, column: str, value: int
) -> None:
    table = np.load(copied.root / "samples.npy")
    table[column][7] = value
    np.save(copied.root / "samples.npy", table)
    words = f"^data.train = .*: label {value} of sample 7 is none of 3 classes, so samples.npy is damaged"
    refused(words, lambda: open_dataset(str(copied.root), "data.train", Cache()))


@pytest.mark.parametrize("samples", [10**40, -1, 1.5, True, None, "25", [25]])
def test_a_count_beyond_int_range_in_the_manifest(copied: Manifest, samples: object) -> None:
    file = copied.root / "manifest.json"
    document = json.loads(file.read_text())
    document["shards"][0]["samples"] = samples
    file.write_text(json.dumps(document))
    refused("manifest.json: .*number of samples|120 rows, ", lambda: Manifest.load(copied.root))
