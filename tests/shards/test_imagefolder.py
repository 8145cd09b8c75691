import os
import shutil
from pathlib import Path

import pytest

from shards.errors import InputError
from shards.readers import find, imagefolder


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def refusal(root: Path, split: str | None, classes: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        imagefolder.read(root, split, classes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def keys(root: Path, split: str | None = None) -> list[str]:
    return [record.key for record in imagefolder.read(root, split).records]


def test_classes_are_sorted_folders_at_any_depth_and_case(tmp_path: Path) -> None:
    tree(tmp_path, "b/x/y/2.JPG", "b/1.png", "a/3.jpeg", "a/3.WebP", "ä, b/.hidden.jpg", "ä, b/o.jpg", ".git/z.jpg")
    source = imagefolder.read(tmp_path, None)
    assert source.classes == ("a", "b", "ä, b")
    assert [(r.key, r.extension, r.label, r.clean_label) for r in source.records] == [
        ("a/3.WebP", "webp", 0, -1),
        ("a/3.jpeg", "jpg", 0, -1),
        ("b/1.png", "png", 1, -1),
        ("b/x/y/2.JPG", "jpg", 1, -1),
        ("ä, b/o.jpg", "jpg", 2, -1),
    ]
    assert source.split == "train"


def test_order_does_not_depend_on_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, *(f"{c}/{i}.jpg" for c in "ab" for i in range(20)))
    straight = imagefolder.read(tmp_path, None)
    scandir = os.scandir

    class Reversed:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda e: e.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert imagefolder.read(tmp_path, None) == straight


def test_a_named_split_is_a_folder_or_a_name(tmp_path: Path) -> None:
    tree(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg", "val/b/4.jpg")
    assert keys(tmp_path, "train") == keys(tmp_path / "train") == keys(tmp_path / "train", "train")
    assert keys(tmp_path, "val") == ["a/3.jpg", "b/4.jpg"]
    assert imagefolder.read(tmp_path / "val", "clean").split == "clean"


def test_splits_are_never_taken_for_classes(tmp_path: Path) -> None:
    root = tree(tmp_path / "a", "test/x/1.jpg", "train/x/2.jpg", "validation/x/3.jpg")
    for split, offered in [(None, "train"), ("val", "validation"), ("valid", "validation"), ("training", "train")]:
        for extra in ("", "docs/1.jpg"):
            if extra and split is None:
                continue  # class folders, as far as anybody can know
            tree(root, *([extra] if extra else []))
            message = refusal(root, split)
            assert "test, train, validation" in message and message.endswith(f"read one with --split {offered}")
            shutil.rmtree(root / "docs", ignore_errors=True)
    assert refusal(root, "dev").endswith("read one with --split NAME")
    shutil.rmtree(root / "test")
    assert refusal(root, "test").endswith("read one with --split NAME"), "train is nothing to test on"
    assert refusal(tree(tmp_path / "b", "Train/x/1.jpg", "x/1.jpg"), "train").endswith("--split Train")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    tree(tmp_path, "bus/1.jpg", "train/2.jpg")
    assert keys(tmp_path, "val") == ["bus/1.jpg", "train/2.jpg"]


def test_a_root_too_high_or_too_low_is_named(tmp_path: Path) -> None:
    tree(tmp_path, "own/train/a/1.jpg", "own/val/a/2.jpg")
    message = refusal(tmp_path, None)
    assert "its one folder, own, holds folders (train, val) and no image" in message
    assert message.endswith(f"give --root {tmp_path / 'own'}")
    tree(tmp_path, "another/1.jpg")
    message = refusal(tmp_path, "train")
    assert "has no such folder, but own has one;" in message and message.endswith(f"give --root {tmp_path / 'own'}")
    assert keys(tmp_path / "own", "train") == ["a/1.jpg"]
    message = refusal(tmp_path / "own/train/a", None)
    assert "no class folders, but 1 image;" in message and message.endswith(f"give --root {tmp_path / 'own/train'}")
    tree(tmp_path, "own/val/1.jpg", "own/val/2.jpg")
    source = imagefolder.read(tmp_path / "own/val", None)
    assert source.passed_over == 2 and keys(tmp_path / "own/val") == ["a/2.jpg"]
    assert source.notes[0].startswith("passed over 2 images outside the class folders (1.jpg, 2.jpg)")
    shutil.rmtree(tmp_path / "own/val/a")
    assert refusal(tmp_path / "own/val", None).endswith("images belong in ROOT/class/, one folder per class")


def test_a_root_too_low_is_named_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree(tmp_path, "a/1.jpg") / "a")
    assert refusal(Path("."), None).endswith(f"give --root {tmp_path}")


def test_a_list_of_classes_makes_splits_agree(tmp_path: Path) -> None:
    tree(tmp_path, "train/ox/1.jpg", "train/cat/2.jpg", "val/cat/3.jpg", "val/dog/x.txt")
    (tmp_path / "classes.txt").write_text("ox\ncat\ndog\n")
    train, val = (imagefolder.read(tmp_path, split, str(tmp_path / "classes.txt")) for split in ("train", "val"))
    assert train.classes == val.classes == ("ox", "cat", "dog")
    assert [(r.key, r.label) for r in train.records] == [("cat/2.jpg", 1), ("ox/1.jpg", 0)]
    assert [(r.key, r.label) for r in val.records] == [("cat/3.jpg", 1)]
    assert train.notes == ("1 of 3 classes have no image (dog)",)
    assert val.notes[1] == "2 of 3 classes have no image (ox, dog)"
    (tmp_path / "classes.txt").write_text("ox\ncow\n")
    assert f"no class of --classes {tmp_path}/classes.txt: cat; name it" in refusal(
        tmp_path, "train", str(tmp_path / "classes.txt")
    )


def test_other_files_are_counted_and_said(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.jpg", "a/Thumbs.db", "README.txt", "a/sub/list.csv")
    source = imagefolder.read(tmp_path, None)
    assert source.passed_over == 3
    assert source.notes == ("passed over 3 files other than images (README.txt, a/Thumbs.db, a/sub/list.csv)",)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    tree(tmp_path / "far", "1.jpg", "more/2.jpg")
    tree(tmp_path / "raw", "a/0.jpg")
    (tmp_path / "raw/b").symlink_to(tmp_path / "far")
    (tmp_path / "raw/a/l.png").symlink_to(tmp_path / "far/1.jpg")
    assert keys(tmp_path / "raw") == ["a/0.jpg", "a/l.png", "b/1.jpg", "b/more/2.jpg"]
    (tmp_path / "raw/a/up").symlink_to(tmp_path / "raw")
    with pytest.raises(InputError, match="contains it"):
        imagefolder.read(tmp_path / "raw", None)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((), ["no class folders"]),
        (("1.jpg", "2.jpg"), ["no class folders"]),
        (("a/x.txt",), ["no images", ".jpg"]),
        (("a/1.jpg", "b/x.txt"), ["no image in 1 class folder (b)", "--classes FILE"]),
        (
            ("a/1.jpg", *(f"a/{i}.{s}" for i, s in enumerate(["bmp", "TIF", "gif", "ppm", "tiff", "heic"]))),
            ["6 images are neither", "a/0.bmp, a/1.TIF, a/2.gif, a/3.ppm, a/4.tiff, ...", "convert"],
        ),
    ],
)
def test_refuses_what_it_cannot_use(tmp_path: Path, names: tuple[str, ...], words: list[str]) -> None:
    tree(tmp_path, *names)
    with pytest.raises(InputError) as caught:
        imagefolder.read(tmp_path, None)
    assert all(word in str(caught.value) for word in [str(tmp_path), *words])
    assert "\n" not in str(caught.value)


def test_refuses_missing_roots(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--root FOLDER is needed"):
        imagefolder.read(None, None)
    with pytest.raises(InputError, match="no such folder"):
        imagefolder.read(tmp_path / "none", None)
    with pytest.raises(InputError, match="not a folder"):
        imagefolder.read(tree(tmp_path, "file") / "file", None)


def test_names_an_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "a/1.jpg", "a/shut/2.jpg")
    scandir = os.scandir

    def refuse(path: str):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"/a/shut: cannot be read \(Permission denied\)"):
        find("imagefolder")(tmp_path, None)
