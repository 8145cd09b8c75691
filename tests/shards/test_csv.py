from collections.abc import Sequence
from pathlib import Path

import pytest
from rawsmall import make_list

from shards.errors import InputError
from shards.readers import csv
from shards.readers.record import Source


def read(tmp_path: Path, text: str, name: str = "list.csv", classes: Sequence[str] | None = None) -> Source:
    (tmp_path / name).write_bytes(text.encode())
    if classes is not None:
        (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    return csv.read(tmp_path, None, str(tmp_path / name), str(tmp_path / "classes.txt") if classes else None)


def rows(source: Source) -> list[tuple[str, int, int]]:
    return [(record.key, record.label, record.clean_label) for record in source.records]


def test_names_are_sorted_classes_and_integers_are_themselves(tmp_path: Path) -> None:
    source = read(tmp_path, "b/2.JPG,ox\na/1.png,cat\na/3.webp,ox\n")
    assert (source.reader, source.split, source.classes) == ("csv", "train", ("cat", "ox"))
    assert rows(source) == [("a/1.png", 0, -1), ("a/3.webp", 1, -1), ("b/2.JPG", 1, -1)]
    assert [record.extension for record in source.records] == ["png", "webp", "jpg"]
    assert source.notes == ()
    source = read(tmp_path, "1.jpg,10\n2.jpg,2\n")
    assert source.classes == tuple(str(i) for i in range(11))
    assert rows(source) == [("1.jpg", 10, -1), ("2.jpg", 2, -1)]
    assert source.notes == ("9 of 11 classes have no image (0, 1, 3, 4, 5, ...)",)
    assert read(tmp_path, "1.jpg,01\n2.jpg,10\n").classes == ("01", "10")


def test_a_class_file_makes_splits_agree(tmp_path: Path) -> None:
    names = ("ox", "cat", "dog")
    assert rows(read(tmp_path, "1.jpg,dog\n", classes=names)) == [("1.jpg", 2, -1)]
    assert rows(read(tmp_path, "1.jpg,1\n", classes=names)) == [("1.jpg", 1, -1)]
    source = read(tmp_path, "1.jpg,1\n", classes=("3", "2", "1"))  # names that are numbers stay names
    assert (rows(source), source.classes) == ([("1.jpg", 2, -1)], ("3", "2", "1"))
    for text, label in [
        ("1.jpg,dog\n2.jpg,cow\n", "'cow'"),
        ("1.jpg,0\n2.jpg,3\n", "'3'"),
        ("1.jpg,0\n2.jpg,-1\n", "'-1'"),
    ]:
        with pytest.raises(InputError, match=rf"list\.csv line 2: label {label} is none of the 3 classes"):
            read(tmp_path, text, classes=names)
    for bad, words in [
        (("a", "", "b"), "line 2: empty"),
        (("a", "b", "a"), r"line 3: class 'a' stands in line 1"),
        (("..",), "line 1"),
    ]:
        with pytest.raises(InputError, match=rf"classes\.txt {words}"):
            read(tmp_path, "1.jpg,a\n", classes=bad)


def test_clean_labels_may_be_unknown(tmp_path: Path) -> None:
    source = read(tmp_path, "1.jpg,cat,dog\n2.jpg,cat,\n3.jpg,dog,dog\n4.jpg,dog,-1\n")
    assert source.classes == ("cat", "dog")
    assert rows(source) == [("1.jpg", 0, 1), ("2.jpg", 0, -1), ("3.jpg", 1, 1), ("4.jpg", 1, -1)]
    with pytest.raises(InputError, match="line 1: label 'dgo'"):
        read(tmp_path, "1.jpg,cat,dgo\n", classes=("cat", "dog"))


@pytest.mark.parametrize(
    "text",
    [
        "path,label,clean\na.jpg,cat,dog\nb.jpg,dog,\n",
        "Clean_Label, Class ,FileName\ndog,cat,a.jpg\n,dog,b.jpg\n",
        '\ufefftarget,image,clean\r\n"cat",./a.jpg,dog\r\n\r\ndog,b.jpg,\r\n',
    ],
)
def test_a_header_frees_the_order(tmp_path: Path, text: str) -> None:
    assert rows(read(tmp_path, text)) == [("a.jpg", 0, 1), ("b.jpg", 1, -1)]


def test_other_columns_are_passed_over_and_said(tmp_path: Path) -> None:
    source = read(tmp_path, "box,path,split,label,box\n1 2,a.jpg,x,cat,5\n,b.jpg,y,dog,\n")
    assert rows(source) == [("a.jpg", 0, -1), ("b.jpg", 1, -1)]
    assert source.notes == ("passed over 2 columns of list.csv (box, split)",)


def test_a_first_image_is_no_header(tmp_path: Path) -> None:
    assert rows(read(tmp_path, "label/1.jpg,label\n2.jpg,class\n")) == [("2.jpg", 0, -1), ("label/1.jpg", 1, -1)]


def test_quotes_and_tabs(tmp_path: Path) -> None:
    source = read(tmp_path, '"a, ""b"".jpg","red, ripe"\nc.jpg,green\n')
    assert [record.key for record in source.records] == ['a, "b".jpg', "c.jpg"]
    assert source.classes == ("green", "red, ripe")
    assert rows(read(tmp_path, "a,b.jpg\t0\t0\n", "list.tsv")) == [("a,b.jpg", 0, 0)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.jpg,1\nb.jpg,1", "line 2: 'b.jpg,1' has no line end"),
        ('a.jpg,1\nb.jpg,"1\n', "line 2: damaged \\(unexpected end of data\\); mend"),
        ("a.jpg,1\nb.jpg\n", "line 2: 1 columns .* 2 in the lines before"),
        ("a.jpg,1\nb.jpg,1,2\n", "line 2: 3 columns"),
        ("a.jpg,1,2,3\n", "line 1: 4 columns"),
        ("a.jpg\t1\n", "line 1: 1 columns .* by a comma in .csv"),
        ("a.jpg,1\n,1\n", "line 2: the path is empty"),
        ("a.jpg,1\n,\n", "line 2: the path is empty"),
        ("a.jpg,1\nb.jpg, \n", "line 2: 'b.jpg' has no label"),
        ("a.jpg,1\n../b.jpg,1\n", "line 2: '../b.jpg' leads out of --root"),
        ("a.jpg,1\nx/../../b.jpg,1\n", "line 2: .* leads out"),
        ("/a.jpg,1\n", "line 1: '/a.jpg' leads out"),
        ("a.gif,1\n", "line 1: 'a.gif' is no name of a .jpg"),
        ("name,category\na.jpg,1\n", "line 1: 'name' is no name of a .jpg"),
        ("a.jpg,1\nb.jpg,1\n./a.jpg,0\n", "line 3: 'a.jpg' stands in line 1 already; keep one line"),
        (
            "path,label,Class\na.jpg,1,2\n",
            "line 1: column 'Class' is a second one for the label; name one each of path",
        ),
        ("path,file,label\na.jpg,b.jpg,1\n", "line 1: column 'file' is a second one for the path"),
        ("label,clean\n1,2\n", "line 1: no column of paths"),
        ("a.jpg,0\nb.jpg,-3\n", "line 2: label -3: integers count the classes from 0"),
        ("a.jpg,0\nb.jpg,9000000\n", "line 2: label 9000000"),
        ("path,label\n", "names no image"),
        ("", "names no image"),
    ],
)
def test_damaged_lists_are_named_with_file_line_and_value(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=rf"list\.csv:? ?{words}") as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_what_it_needs(tmp_path: Path) -> None:
    for words, root, file in [
        ("--root FOLDER is needed", None, "x.csv"),
        ("no such folder", tmp_path / "none", "x.csv"),
        ("csv needs --list FILE", tmp_path, None),
        ("x.txt: must end in .csv", tmp_path, "x.txt"),
        ("x.csv: cannot be read", tmp_path, "x.csv"),
    ]:
        with pytest.raises(InputError, match=words):
            csv.read(root, None, file)
    (tmp_path / "bytes.csv").write_bytes(b"a.jpg,1\nb\xff.jpg,1\n")
    with pytest.raises(InputError, match=r"bytes\.csv line \d: not UTF-8"):
        csv.read(tmp_path, None, str(tmp_path / "bytes.csv"))


def test_the_small_raw_lists(tmp_path: Path) -> None:
    make_list(tmp_path / "raw")
    root = tmp_path / "raw"
    train = csv.read(root, "train", str(root / "train.csv"), str(root / "classes.txt"))
    val = csv.read(root, "val", str(root / "val.tsv"), str(root / "classes.txt"))
    assert train.classes == val.classes == ("cat", "dog", "ox")
    assert [record.label for record in train.records] == [i % 3 for i in range(8)]
    assert [(record.label, record.clean_label) for record in val.records] == [(i % 2, i % 3) for i in range(8, 12)]
    assert all((root / record.key).is_file() for record in [*train.records, *val.records])
