import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.errors import InputError
from shards.localfolder import LocalFolder
from shards.manifest import Manifest, Shard
from shards.publication import publish
from shards.table import SAMPLE_DTYPE


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_opens_what_was_built(built: Manifest) -> None:
    again = Manifest.load(built.root / "manifest.json")
    assert again.root == built.root
    assert again.fingerprint == built.fingerprint
    assert (again.num_samples, again.num_classes, again.split) == (60, 3, "train")
    assert again.classes == ("apple, red", "bird", "ähre.v1")
    assert again.labels.dtype == np.int32
    assert again.labels.shape == again.clean_labels.shape == (60,)
    assert again.shard_sizes.tolist() == [7] * 8 + [4]
    assert [again.shard_path(i).name for i in (0, 8)] == ["shard-000000.tar", "shard-000008.tar"]
    assert not again.table.flags.writeable
    assert isinstance(again.table, np.memmap)


def test_keys_come_back_as_they_were(built: Manifest, raw: Path) -> None:
    keys = [built.key(sample) for sample in range(60)]
    assert sorted(keys) == sorted(str(f.relative_to(raw)) for f in raw.rglob("*.*") if f.is_file())
    assert any("," in key and "ü" in key and key.count(".") > 1 and "deep/er" in key for key in keys)
    for sample in (-1, 60):
        with pytest.raises(IndexError):
            built.key(sample)


def test_keys_of_any_text(tmp_path: Path) -> None:
    keys = ["a,b.c.d/é 漢字.jpg", "", "new\nline.png", "🙂"]
    table = np.zeros(4, dtype=SAMPLE_DTYPE)
    table["key"][1:] = np.cumsum([len(key.encode()) for key in keys[:-1]])
    (tmp_path / "s.tar").write_bytes(b"xyz")
    manifest = publish(
        LocalFolder(tmp_path),
        split="test",
        classes=["one"],
        shards=[Shard("s.tar", 4, 3, "0" * 64)],
        table=table,
        keys="".join(keys).encode(),
        noise=None,
        source={},
    )
    assert [manifest.key(sample) for sample in range(4)] == keys


def test_pickles_as_a_path(built: Manifest) -> None:
    assert built.table is not None
    data = pickle.dumps(built)
    assert len(data) < 600
    again = pickle.loads(data)
    assert again.fingerprint == built.fingerprint
    assert np.array_equal(again.table, built.table)


def test_a_pickle_does_not_open_another_dataset(copied: Path) -> None:
    data = pickle.dumps(Manifest.load(copied))
    edit(copied, split="other")
    with pytest.raises(InputError, match="changed while it was in use"):
        pickle.loads(data)


def test_fingerprint_covers_what_matters_but_not_the_place(built: Manifest, copied: Path) -> None:
    assert Manifest.load(copied).fingerprint == built.fingerprint
    document = json.loads((copied / "manifest.json").read_text())
    seen = {built.fingerprint}
    changed_shards = [*document["shards"]]
    changed_shards[3] = changed_shards[3] | {"sha256": "0" * 64}
    changed_table = document["table"] | {"keys.bin": document["table"]["keys.bin"] | {"sha256": "0" * 64}}
    changes = ({"classes": ["a", "b", "c"]}, {"shards": changed_shards}, {"table": changed_table})
    for change in changes:
        edit(copied, **change)
        seen.add(Manifest.read(copied).fingerprint)
        edit(copied, **document)
    assert len(seen) == 4


def test_says_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        Manifest.load(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"not a shard folder.*alasca shard.*notes\.txt"):
        Manifest.load(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        Manifest.load(tmp_path / "notes.txt")
    (tmp_path / ".build").mkdir()
    with pytest.raises(InputError, match="half-finished"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "word"),
    [("{", "damaged"), ("[]", "schema None"), ('{"schema": 99}', "schema 99"), ('{"schema": 1}', "damaged")],
)
def test_says_what_cannot_be_parsed(copied: Path, text: str, word: str) -> None:
    (copied / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=word) as caught:
        Manifest.load(copied)
    assert "manifest.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../x.tar", "/etc/x.tar", "a/b.tar", "..", ".tar", ".hidden.tar", "x.zip", "a\\b.tar", "a\0.tar", 7]
)
def test_shards_never_leave_the_folder(copied: Path, name: object) -> None:
    shards = json.loads((copied / "manifest.json").read_text())["shards"]
    shards[0]["name"] = name
    edit(copied, shards=shards)
    with pytest.raises(InputError, match="shard name"):
        Manifest.load(copied)


@pytest.mark.parametrize(
    "classes",
    [
        ["..", "a", "b"],
        ["/etc", "a", "b"],
        ["x/../../y", "a", "b"],
        ["a\nb", "c", "d"],
        ["", "a", "b"],
        ["a", "a", "b"],
        [1, 2, 3],
        [],
    ],
)
def test_class_names_are_no_paths_out(copied: Path, classes: list[object]) -> None:
    edit(copied, classes=classes)
    with pytest.raises(InputError, match="class"):
        Manifest.load(copied)


def test_a_slash_in_a_class_name_is_no_harm(copied: Path) -> None:
    edit(copied, classes=["T-shirt/top", "b", "c"])
    assert Manifest.load(copied).classes[0] == "T-shirt/top"


@pytest.mark.parametrize("name", ["shard-000002.tar", "samples.npy", "keys.bin"])
def test_a_missing_or_shorter_file_is_seen_on_opening(copied: Path, name: str) -> None:
    whole = (copied / name).read_bytes()
    (copied / name).write_bytes(whole[:-1])
    with pytest.raises(InputError, match=f"{name} has {len(whole) - 1:,} bytes, {len(whole):,} in the manifest"):
        Manifest.load(copied)
    (copied / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        Manifest.load(copied)


def test_another_number_of_rows_is_seen_on_opening(copied: Path) -> None:
    shards = json.loads((copied / "manifest.json").read_text())["shards"]
    shards[0]["samples"] += 1
    edit(copied, shards=shards)
    with pytest.raises(InputError, match="60 rows, 61 samples"):
        Manifest.load(copied)


def test_never_unpickles_a_table(copied: Path) -> None:
    size = (copied / "samples.npy").stat().st_size
    np.save(copied / "samples.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    data = (copied / "samples.npy").read_bytes()
    (copied / "samples.npy").write_bytes(data.ljust(size, b"\0"))
    with pytest.raises(InputError, match=r"samples\.npy is damaged"):
        Manifest.load(copied)


def test_a_copy_elsewhere_is_the_same_dataset(built: Manifest, tmp_path: Path) -> None:
    shutil.copytree(built.root, tmp_path / "elsewhere")
    assert str(built.root) not in (tmp_path / "elsewhere/manifest.json").read_text()
