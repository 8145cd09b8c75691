import os
from pathlib import Path

import pytest
from rawsmall import make_animal10n

from shards.errors import InputError
from shards.readers import animal10n

NAMES = ["cat", "lynx", "wolf", "coyote", "cheetah", "jaguar", "chimpanzee", "orangutan", "hamster", "guinea pig"]


def test_the_label_begins_the_name(tmp_path: Path) -> None:
    make_animal10n(tmp_path)
    train, test = animal10n.read(tmp_path, None), animal10n.read(tmp_path, "test")
    assert (train.split, list(train.classes)) == ("train", NAMES)
    assert [record.key for record in train.records] == sorted(f"training/{i % 10}_{i:05d}.jpg" for i in range(20))
    assert all(record.label == int(record.key[9]) and record.clean_label == -1 for record in train.records)
    assert [record.key for record in test.records] == sorted(f"testing/{i % 10}_{i:05d}.jpg" for i in range(20))
    assert all(record.label == record.clean_label == int(record.key[8]) for record in test.records)
    assert train.notes == ("20 images; ANIMAL-10N has 50,000 in train",)
    assert test.notes == ("20 images; ANIMAL-10N has 5,000 in test",)


def test_other_files_are_counted_and_said(tmp_path: Path) -> None:
    make_animal10n(tmp_path)
    (tmp_path / "training/Thumbs.db").write_bytes(b"")
    (tmp_path / "training/.hidden_1.jpg").write_bytes(b"")
    source = animal10n.read(tmp_path, "train")
    assert source.passed_over == 1
    assert source.notes[0] == "passed over 1 file other than images (training/Thumbs.db)"


@pytest.mark.parametrize("name", ["10_1.jpg", "7.jpg", "cat_1.jpg", "_1.jpg", "-1_1.jpg", "01_1.jpg"])
def test_a_name_without_a_label(tmp_path: Path, name: str) -> None:
    make_animal10n(tmp_path)
    os.rename(tmp_path / "training/3_00003.jpg", tmp_path / "training" / name)
    with pytest.raises(InputError, match=rf"training/{name}: the name does not begin with a label"):
        animal10n.read(tmp_path, None)


def test_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "testing").mkdir()
    for words, root, split in [
        ("--root FOLDER is needed", None, None),
        ("cannot read its folder training .*LABEL_NUMBER.jpg", tmp_path, None),
        ("no image in its folder testing", tmp_path, "test"),
        ("--split val: ANIMAL-10N has the splits train and test", tmp_path, "val"),
    ]:
        with pytest.raises(InputError, match=words):
            animal10n.read(root, split)
