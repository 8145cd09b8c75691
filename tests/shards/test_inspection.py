import argparse
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from shards import commands, inspection
from shards.errors import InputError
from shards.inspection import Labels
from shards.localfolder import LocalFolder
from shards.manifest import Manifest, Shard
from shards.publication import publish
from shards.table import SAMPLE_DTYPE


def inspect(*arguments: object) -> int:
    parser = argparse.ArgumentParser(prog="alasca")
    commands.register(parser.add_subparsers(required=True))
    args = parser.parse_args(["inspect", *(str(argument) for argument in arguments)])
    status: int = args.run(args)
    return status


def table_of(given: list[int], clean: list[int]) -> np.ndarray:
    table = np.zeros(len(given), SAMPLE_DTYPE)
    table["label"], table["clean_label"] = given, clean
    return table


def write(root: Path, table: np.ndarray, classes: int, keys: list[str] | None = None, **source: object) -> Manifest:
    """A dataset folder around a table; its one shard is never read."""
    root.mkdir()
    (root / "a.tar").write_bytes(b"")
    names = [name.encode() for name in keys or [f"{i}.jpg" for i in range(len(table))]]
    table["key"] = np.cumsum([0, *(len(name) for name in names[:-1])])
    return publish(
        LocalFolder(root),
        split="train",
        classes=[f"class {i}" for i in range(classes)],
        shards=[Shard("a.tar", len(table), 0, "0" * 64)],
        table=table,
        keys=b"".join(names),
        noise=None,
        source={"reader": "csv", "options": {}, "counts": {"unreadable": 0}, "unreadable": [], **source},
    )


def test_prints_what_the_folder_holds(built: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(built.root) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    size = sum(path.stat().st_size for path in built.root.glob("*.tar")) / 1e6
    assert lines[0] == (
        f"{built.root}: 60 images, 3 classes, 9 shards, {size:.1f} MB, symmetric noise on 30.00% of the labels"
    )
    assert lines[1] == "split      train"
    assert lines[2] == "made by    imagefolder (seed 3, resize none, samples per shard 7)"
    assert lines[3] == (
        "noise      kind symmetric, rate 0.3, seed 3, convention excluding the true class, flipped 18, realised 0.3"
    )
    given = Counter(built.labels.tolist())
    for label, name in enumerate(built.classes):
        assert f"{given[label]:>10} {20:>10}  {name}" in lines
    rare = min(given.values())
    assert f"largest class-balanced epoch: 3 x {rare} = {3 * rare} images" in lines
    assert f"ratio {max(given.values()) / rare:.1f}" in printed.out
    assert "30.00% of the given labels are wrong, where the clean label is known" in lines
    for true, name in enumerate(built.classes):
        pairs = zip(built.clean_labels.tolist(), built.labels.tolist(), strict=True)
        of_true = Counter(g for c, g in pairs if c == true)
        shares = [f"{of_true[g] * 5:.1f}" if of_true[g] else "." for g in range(3)]  # of 20 each
        row = next(line for line in lines if line.startswith(f" {true} {name}"))
        assert row.split()[-3:] == shares
    widths = sorted(built.table["width"].tolist())
    assert widths == list(range(20, 80))
    # The value that a share of 5 % of 60 samples reaches is the third, of 50 % the thirtieth.
    assert next(line for line in lines if line.startswith("width")).split()[1:] == ["20", "22", "49", "76", "79"]
    area = sorted((20 + i) * (70 - i) for i in range(60))
    marks = [f"{area[i]:,}" for i in (0, 2, 29, 56, 59)]
    assert next(line for line in lines if line.startswith("pixels")).split()[1:] == marks
    assert "60 images (100.00%) have a short side below 224 pixels" in lines
    assert "by the names: 30 jpg, 15 png, 15 webp" in lines
    assert lines[-1] == f"this was a look; `alasca verify {built.root}` hashes everything"


def test_no_shard_is_read(copied: Path) -> None:
    for path in copied.glob("*.tar"):
        path.write_bytes(bytes(path.stat().st_size))
    assert inspect(copied) == 0


def test_pairs_and_confusion_of_labels_known_in_part() -> None:
    labels = Labels.of(table_of([0, 1, 1, 2, 2, 2, 0, 1], [0, 0, 0, 2, 1, -1, -1, 0]), 4)
    assert labels.given.tolist() == [2, 3, 3, 0]
    assert labels.clean is not None
    assert labels.clean.tolist() == [4, 1, 1, 0]
    assert (labels.known, labels.noise_rate) == (6, pytest.approx(4 / 6))
    assert labels.wrong.tolist() == [[0, 1, 3], [1, 2, 1]]
    expected = [[0.25, 0.75, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [np.nan] * 4]
    np.testing.assert_array_equal(labels.confusion(), expected)


def test_labels_that_are_no_class_are_left_out() -> None:
    labels = Labels.of(table_of([0, 5, -3, 1], [0, 0, 1, 9]), 2)
    assert labels.given.tolist() == [1, 1]
    assert labels.wrong.tolist() == []


def test_many_classes_show_their_two_ends_and_the_largest_pairs(tmp_path: Path) -> None:
    counts = np.arange(1, 101)  # class k has k + 1 samples
    given = np.repeat(np.arange(100), counts)
    clean = given.copy()
    clean[given == 99] = np.arange(100) % 20  # five of class 99 come from each of twenty classes
    clean[given == 50] = -1
    out = inspection.lines(write(tmp_path / "x", table_of(given.tolist(), clean.tolist()), 100))
    start = next(i for i, line in enumerate(out) if line.endswith(" class"))
    table = [line.split() for line in out[start + 1 : start + 32]]
    assert [int(row[0]) for row in table[:15]] == list(range(100, 85, -1))
    assert table[15] == ["...", "70", "more", "classes"]
    assert [int(row[0]) for row in table[16:]] == list(range(15, 0, -1))
    assert [row[1] for row in table[14:17]] == ["86", "70", "20"]  # the clean counts: as given, and five more
    wrong, known = 100, 5050 - 51
    known_line = f"{wrong / known:.2%} of the given labels are wrong, where the clean label is known (4,999 of 5,050"
    assert any(line.startswith(known_line) for line in out)
    pairs = [line for line in out if "->" in line and "%" in line]
    assert len(pairs) == 15
    assert pairs[1] == f"{5:>10} {5 / 7:>8.2%}  class 1 -> class 99"
    assert any(line.endswith("5 more pairs") for line in out)


def test_empty_classes_and_unknown_truth(tmp_path: Path) -> None:
    table = table_of([0, 0, 2], [-1, -1, -1])
    table["size"] = 7
    keys = ["a.JPG", "b.jpeg.txt", "jpg"]
    out = inspection.lines(write(tmp_path / "x", table, 4, keys, options={"map": list(range(1000))}))
    assert "most frequent: class 0, 2 images; 2 classes have none (class 1, class 3), so no balanced epoch" in "".join(
        out
    )
    assert "no clean label is known" in out
    assert "3 images are of unknown size" in out
    assert "by the names: 1 jpg, 2 other" in out
    made = next(line for line in out if line.startswith("made by"))
    assert re.fullmatch(r"made by    csv \(map \[0, 1, 2, .*\.\.\.\)", made) and len(made) < 90
    assert not any(line.startswith("width") for line in out)


def test_what_was_left_out_is_said(tmp_path: Path) -> None:
    counts = {"unreadable": 0, "missing": 1200, "passed_over": 3}
    out = inspection.lines(write(tmp_path / "x", table_of([0, 1], [0, 1]), 2, counts=counts))
    assert "left out   1,200 images that were not there, 3 files that are no images" in out
    assert "0.00% of the given labels are wrong, where the clean label is known" in out
    assert not any("true, given" in line for line in out)  # nothing is confused


@pytest.mark.parametrize(("column", "value"), [("label", 3), ("label", -1), ("clean_label", -2), ("key", 10**6)])
def test_a_damaged_table_is_named(copied: Path, column: str, value: int) -> None:
    table = np.load(copied / "samples.npy")
    table[column][10] = value
    np.save(copied / "samples.npy", table)
    with pytest.raises(InputError, match="see `alasca verify`"):
        inspect(copied)


def test_a_folder_that_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a shard folder"):
        inspect(tmp_path)
