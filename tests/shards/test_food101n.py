from pathlib import Path

import pytest
from rawsmall import DISHES, make_food101, make_food101n

from shards.errors import InputError
from shards.readers import food101n


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_food101n(tmp_path / "n")
    return tmp_path / "n"


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_train_is_the_whole_list_and_knows_what_people_verified(tmp_path: Path) -> None:
    verdicts = make_food101n(tmp_path)
    source = food101n.read(tmp_path, None)
    assert (source.split, source.classes) == ("train", DISHES)
    assert source.notes == (
        "18 images; Food-101N has 310,009 in train",
        "meta/classes.txt has 3 classes; Food-101N has 101",
    )
    expected = [
        (f"images/{key}", DISHES.index(key.split("/")[0]), DISHES.index(key.split("/")[0]) if verdict == 1 else -1)
        for key, verdict in sorted(verdicts.items())
    ]
    assert [(record.key, record.label, record.clean_label) for record in source.records] == expected
    assert {clean for _, _, clean in expected} == {-1, 0, 1, 2}


def test_the_verified_splits(tmp_path: Path) -> None:
    verdicts = make_food101n(tmp_path)
    train = food101n.read(tmp_path, "verified_train").records
    val = food101n.read(tmp_path, "verified_val").records
    assert (len(train), len(val)) == (9, 3)
    assert "9 images; Food-101N has 52,868 in verified_train" in food101n.read(tmp_path, "verified_train").notes
    assert "3 images; Food-101N has 4,741 in verified_val" in food101n.read(tmp_path, "verified_val").notes
    checked = {f"images/{key}" for key, verdict in verdicts.items() if verdict >= 0}
    assert {record.key for record in [*train, *val]} == checked
    for record in [*train, *val]:
        assert record.clean_label == (record.label if verdicts[record.key[7:]] == 1 else -1)


def test_test_is_food_101_with_equal_classes(root: Path, tmp_path: Path) -> None:
    keys = make_food101(tmp_path / "food101")
    source = food101n.read(tmp_path / "food101", "test")
    assert source.classes == food101n.read(root, None).classes
    assert [record.key for record in source.records] == [f"images/{key}.jpg" for key in sorted(keys)]
    assert all(
        record.label == record.clean_label == DISHES.index(record.key.split("/")[1]) for record in source.records
    )
    assert all((tmp_path / "food101" / record.key).is_file() for record in source.records)
    assert source.notes[0] == "6 images; Food-101 has 25,250 in test"


def test_each_split_has_its_own_root(root: Path, tmp_path: Path) -> None:
    make_food101(tmp_path / "food101")
    for words, folder, split in [
        ("no meta/test.txt, as Food-101 has; --split test needs the folder of Food-101", root, "test"),
        ("this is Food-101; --split train needs the folder of Food-101N", tmp_path / "food101", None),
        ("splits train, verified_train, verified_val, test", root, "val"),
        ("--root FOLDER is needed", None, None),
    ]:
        with pytest.raises(InputError, match=words):
            food101n.read(folder, split)


@pytest.mark.parametrize("name", ["classes.txt", "imagelist.tsv", "verified_train.tsv", "verified_val.tsv"])
def test_a_missing_list_is_named_with_the_layout(root: Path, name: str) -> None:
    (root / "meta" / name).unlink()
    with pytest.raises(InputError, match=rf"meta/{name} is missing; Food-101N has meta/classes.txt, .*images/CLASS/"):
        food101n.read(root, None)


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("classes.txt", "class_name\n", "", "classes.txt line 1: 'apple_pie' is a class, but .* a header"),
        ("classes.txt", "waffles", "apple_pie", "a class stands twice"),
        ("imagelist.tsv", "class_name/key\n", "", "imagelist.tsv line 1: 'apple_pie/a0.jpg' is an image, but"),
        ("verified_val.tsv", "class_name/key\tverification_label\n", "", "verified_val.tsv line 1: .* header"),
        ("imagelist.tsv", "waffles/w5.jpg\n", "waffles/w5.jp\n", "line 19: 'waffles/w5.jp' is not CLASS/IMAGE"),
        ("imagelist.tsv", "waffles/w5.jpg", "waffle/w5.jpg", "line 19: 'waffle/w5.jpg' is in no class folder"),
        ("imagelist.tsv", "waffles/w5.jpg", "waffles/../w5.jpg", "line 19: .* is not CLASS/IMAGE"),
        ("imagelist.tsv", "waffles/w5.jpg\n", "waffles/w5.jpg", "line 19: 'waffles/w5.jpg' has no line end"),
        ("classes.txt", "waffles\n", "waffles", "line 4: 'waffles' has no line end, so the list was cut short"),
        ("verified_train.tsv", "w5.jpg\t1\n", "w5.jpg\t\n", "line 10: 'waffles/w5.jpg' is not CLASS/IMAGE<tab>0 or 1"),
        ("verified_train.tsv", "w5.jpg\t1\n", "w5.jpg\t2\n", "line 10: waffles/w5.jpg has the verdict '2'"),
        ("verified_train.tsv", "w5.jpg\t1\n", "w5.jpg\t1\nwaffles/w5.jpg\t0\n", "both 1 and 0"),
    ],
)
def test_damaged_lists(root: Path, name: str, old: str, new: str, words: str) -> None:
    edit(root / "meta" / name, old, new)
    with pytest.raises(InputError, match=words) as caught:
        food101n.read(root, None)
    assert "\n" not in str(caught.value)
