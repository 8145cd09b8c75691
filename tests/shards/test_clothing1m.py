import shutil
from pathlib import Path

import numpy as np
import pytest
import rawtrees
from PIL import Image

from shards.build import build
from shards.errors import InputError
from shards.readers import clothing1m, find
from shards.readers.record import Source
from shards.verify import verify

SPLITS = ("train", "clean_train", "val", "test", "both")
KEYS, NOISY, CLEAN = "clean_train_key_list.txt", "noisy_label_kv.txt", "clean_label_kv.txt"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, rawtrees.Truth]:
    """Never to be changed: tests that damage its lists copy them."""
    root = tmp_path_factory.mktemp("raw") / "clothing1m"
    return root, rawtrees.clothing1m(root, each=6, size=16)


@pytest.fixture
def raw(tree: tuple[Path, rawtrees.Truth], tmp_path: Path) -> Path:
    """The lists, and no images: reading needs none."""
    shutil.copytree(tree[0], tmp_path / "raw", ignore=shutil.ignore_patterns("images"))
    (tmp_path / "raw/images").mkdir()
    return tmp_path / "raw"


def found(source: Source) -> dict[str, tuple[int, int]]:
    return {record.key: (record.label, record.clean_label) for record in source.records}


def refusal(root: Path | None, split: str | None) -> str:
    with pytest.raises(InputError) as caught:
        find("clothing1m")(root, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("lists", ["", "annotations", "images"])
@pytest.mark.parametrize("given", ["", "images"])
def test_every_layout_gives_the_same_records(tmp_path: Path, lists: str, given: str) -> None:
    truth = rawtrees.clothing1m(tmp_path / "raw", lists=lists, each=3, size=16)
    for split in SPLITS:
        source = clothing1m.read(tmp_path / "raw" / given, split)
        assert found(source) == truth[split]
        assert source.classes[8] == "Down Coat" and len(source.classes) == 14
        assert source.options == {}
        assert [record.key for record in source.records] == sorted(truth[split])
        assert source.root is not None
        with Image.open(source.root / source.records[-1].key) as image:
            assert image.format == "JPEG"
    assert clothing1m.read(tmp_path / "raw", None) == clothing1m.read(tmp_path / "raw", "train")


def test_the_folder_images_under_another_name_or_from_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: tuple[Path, rawtrees.Truth]
) -> None:
    truth = rawtrees.clothing1m(tmp_path / "raw", lists="images", each=3, size=16)
    monkeypatch.chdir(tmp_path / "raw/images")
    assert found(clothing1m.read(Path("."), "val")) == truth["val"]
    (tmp_path / "raw/images").rename(tmp_path / "raw/photographs")
    source = clothing1m.read(tmp_path / "raw/photographs", "val")
    assert found(source) == {key.removeprefix("images/"): labels for key, labels in truth["val"].items()}
    assert source.root is not None and (source.root / source.records[0].key).is_file()


def test_shards_keep_both_labels(tree: tuple[Path, rawtrees.Truth], tmp_path: Path) -> None:
    root, truth = tree
    manifest = build(clothing1m.read(root, "both"), tmp_path / "both", samples_per_shard=20, workers=1)
    pairs = {
        manifest.key(i): (int(manifest.labels[i]), int(manifest.clean_labels[i])) for i in range(manifest.num_samples)
    }
    assert pairs == truth["both"]
    assert verify(manifest.root).differences == ()
    assert 0 < np.count_nonzero(manifest.labels != manifest.clean_labels) < len(pairs)


def test_the_line_without_a_label_is_left_out_and_said(raw: Path, tree: tuple[Path, rawtrees.Truth]) -> None:
    key = (raw / CLEAN).read_text().splitlines()[0]
    assert key.endswith(".jpg") and key in (raw / KEYS).read_text()
    source = clothing1m.read(raw, "clean_train")
    assert f"left out 1 image whose line has no label ({CLEAN} line 1: {key})" in source.notes
    assert not [note for note in clothing1m.read(raw, "val").notes if "left out" in note]

    lines = (raw / CLEAN).read_text().splitlines()
    for number in range(2, 7):
        assert len(lines[number - 1].split()) == 2
        rawtrees.edit(raw / CLEAN, number, lines[number - 1].split()[0])
        if number == 5:
            assert len(found(clothing1m.read(raw, "val"))) >= len(tree[1]["val"]) - 4
    message = refusal(raw, "val")
    assert f"{CLEAN} line 1: {key} has no label, and so 5 more lines; copy the file again" in message


def test_a_list_cut_short_is_named_with_its_line(raw: Path) -> None:
    whole = {name: (raw / name).read_text() for name in (NOISY, CLEAN, KEYS)}
    last = len(whole[CLEAN].splitlines())
    (raw / CLEAN).write_text(whole[CLEAN].rstrip("\n").rpartition(" ")[0] + "\n")
    assert f"{CLEAN} line {last}: cut short" in refusal(raw, "val")
    (raw / CLEAN).write_text(whole[CLEAN].rstrip("\n"))
    assert f"{CLEAN} line {last}: 'images/" in refusal(raw, "val") and "has no line end" in refusal(raw, "val")
    (raw / CLEAN).write_text(whole[CLEAN].rpartition(".jpg")[0])
    assert f"{CLEAN} line {last}: 'images/" in refusal(raw, "val")
    (raw / CLEAN).write_text(whole[CLEAN])

    lines = whole[NOISY].splitlines(keepends=True)
    (raw / NOISY).write_text("".join(lines[:-40]))
    gone = {line.split()[0] for line in lines[-40:]}
    keys = (raw / "noisy_train_key_list.txt").read_text().splitlines()
    missing = [number for number, key in enumerate(keys, 1) if key in gone]
    message = refusal(raw, "train")
    assert f"noisy_train_key_list.txt line {missing[0]}: '{keys[missing[0] - 1]}' has no label in {raw}" in message
    assert f"nor have {len(missing) - 1} more lines" in message

    (raw / KEYS).write_text(whole[KEYS][:-10])
    number = len(whole[KEYS].splitlines())
    assert f"{KEYS} line {number}: 'images/" in refusal(raw, "clean_train")
    (raw / KEYS).write_text("")
    assert "no images in clean_train" in refusal(raw, "clean_train")


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        (" 14", "label '14' is none of 0 to 13"),
        (" -1", "label '-1' is none of 0 to 13"),
        (" shirt", "label 'shirt' is none of 0 to 13"),
        (" 1.0", "label '1.0' is none of 0 to 13"),
        (" 1 2", "is not `path label`"),
        ("\0 1", "is no printable text"),
        (".txt 1", "is no name of an image"),
    ],
)
def test_a_damaged_line_is_named(raw: Path, ending: str, words: str) -> None:
    key = (raw / CLEAN).read_text().splitlines()[2].split()[0]
    rawtrees.edit(raw / CLEAN, 3, key + ending)
    message = refusal(raw, "val")
    assert f"{raw / CLEAN} line 3: " in message and words in message


def test_an_image_that_a_key_list_names_twice_is_refused(raw: Path) -> None:
    keys = (raw / KEYS).read_text().splitlines()
    rawtrees.edit(raw / KEYS, len(keys), f"{keys[-1]}\n{keys[1]}")
    message = refusal(raw, "clean_train")
    assert f"{raw / KEYS} line {len(keys) + 1}: {keys[1]} stands in line 2 already; keep one line" in message


@pytest.mark.parametrize("key", ["/etc/a.jpg", "images/../../a.jpg", "../a.jpg"])
def test_no_path_leads_out(raw: Path, key: str) -> None:
    rawtrees.edit(raw / CLEAN, 3, f"{key} 1")
    assert f"line 3: '{key}' leads out of the folder" in refusal(raw, "val")


def test_two_labels_for_one_image_are_refused_and_the_same_label_twice_is_not(raw: Path) -> None:
    lines = (raw / CLEAN).read_text().splitlines()
    before = found(clothing1m.read(raw, "test"))
    key, label = lines[4].split()
    rawtrees.edit(raw / CLEAN, len(lines), f"{lines[-1]}\n{key} {label}")
    assert found(clothing1m.read(raw, "test")) == before
    rawtrees.edit(raw / CLEAN, len(lines) + 1, f"{key} {(int(label) + 1) % 14}")
    assert f"line {len(lines) + 1}: {key} has label {(int(label) + 1) % 14} here and {label}" in refusal(raw, "test")


def test_line_ends_marks_and_blank_lines_do_not_matter(raw: Path) -> None:
    before = clothing1m.read(raw, "both").records
    for name in (NOISY, CLEAN):
        text = (raw / name).read_text().rstrip("\n").replace("\n", " \r\n").replace(" 3 \r\n", "\t3\r\n\r\n") + "\r\n  "
        (raw / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert clothing1m.read(raw, "both").records == before


def test_a_training_image_with_a_clean_label_keeps_it(raw: Path, tree: tuple[Path, rawtrees.Truth]) -> None:
    key = next(iter(tree[1]["train"]))
    number = len((raw / CLEAN).read_text().splitlines())
    rawtrees.edit(raw / CLEAN, number, f"{(raw / CLEAN).read_text().splitlines()[-1]}\n{key} 11")
    source = clothing1m.read(raw, "train")
    assert found(source) == tree[1]["train"] | {key: (tree[1]["train"][key][0], 11)}
    assert "1 image of train with a clean label: val or test may hold the same" in source.notes


def test_names_in_another_order_are_refused_and_other_spellings_are_not(raw: Path) -> None:
    file = raw / "category_names_eng.txt"
    names = file.read_text().splitlines()
    assert names[8] == "Downcoat"
    assert len(clothing1m.read(raw, "val").notes) == 1
    file.write_text("\n".join([*names[:9], "Costume", *names[10:]]))
    assert f"{file.name} line 10: 'Costume' is no class name of Clothing1M" in clothing1m.read(raw, "val").notes[0]
    file.write_text("\n".join([*names[:3], names[4], names[3], *names[5:]]))
    assert f"{file} line 4: 'Sweater' is class 3 there and 4 in Clothing1M" in refusal(raw, "val")
    file.write_text("\n".join(names[:-1]))
    assert f"{file.name} has 13 names" in clothing1m.read(raw, "val").notes[0]
    file.unlink()
    assert len(clothing1m.read(raw, "val").notes) == 1


def test_counts_are_compared_with_the_published_ones(
    tree: tuple[Path, rawtrees.Truth], monkeypatch: pytest.MonkeyPatch
) -> None:
    published = {"train": 1_000_000, "clean_train": 47_570, "val": 14_313, "test": 10_526, "both": 37_497}
    for split, count in published.items():
        here = len(tree[1][split])
        assert f"{here} images; Clothing1M has {count:,} in {split}" in clothing1m.read(tree[0], split).notes
        monkeypatch.setitem(clothing1m.KNOWN, split, here)
        assert not [note for note in clothing1m.read(tree[0], split).notes if "Clothing1M has" in note]


def test_wrong_roots_splits_and_missing_lists(raw: Path, tmp_path: Path) -> None:
    assert "--root FOLDER is needed" in refusal(None, None)
    assert "no such folder" in refusal(tmp_path / "none", None)
    assert "not a folder" in refusal(raw / CLEAN, None)
    assert "cannot be read (File name too long)" in refusal(tmp_path / ("x" * 300), None)
    assert "--split dev: Clothing1M has the splits train, clean_train, val, test, both" in refusal(raw, "dev")
    folders = ", ".join(str(tmp_path / name) for name in (".", "annotations", "images"))
    assert f"{CLEAN} is missing, looked in {folders}" in refusal(tmp_path, None)
    (raw / NOISY).unlink()
    assert f"{NOISY} is missing" in refusal(raw, "train")
    assert clothing1m.read(raw, "val").records
    (raw / CLEAN).unlink()
    (raw / CLEAN).symlink_to("/proc/self/mem")  # a file that nobody can read from its start
    assert f"{raw / CLEAN}: cannot be read (" in refusal(raw, "val")
