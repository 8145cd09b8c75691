import os
from pathlib import Path

import pytest

from shards.errors import InputError
from shards.readers import imagefolder


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


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
    with pytest.raises(InputError, match=r"\(train, val\) are splits, not classes.*--split train"):
        imagefolder.read(tmp_path, None)
    with pytest.raises(InputError, match="are splits"):
        imagefolder.read(tmp_path, "valid")


def test_other_files_are_counted_and_said(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.jpg", "a/Thumbs.db", "README.txt", "a/sub/list.csv")
    source = imagefolder.read(tmp_path, None)
    assert source.passed_over == 3
    assert source.notes == ("passed over 3 files that are no images (README.txt, a/Thumbs.db, a/sub/list.csv)",)


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
        (("a/1.jpg", "b/x.txt"), ["1 class folders hold no image (b)"]),
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
    with pytest.raises(InputError, match="needs --root"):
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
    with pytest.raises(InputError, match=r"cannot read .*/a/shut: Permission denied"):
        imagefolder.read(tmp_path, None)
