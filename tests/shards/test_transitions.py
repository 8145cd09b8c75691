import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from shards.errors import InputError
from shards.transitions import SUPERCLASSES, Matrix, flip, following, read_matrix, redraw, similar, symmetric

LABELS = (np.arange(20_000) % 10).astype(np.int32)
UNEVEN = np.repeat(np.arange(4), [7, 0, 30, 101]).astype(np.int32)
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def confusion(before: np.ndarray, after: np.ndarray, size: int) -> np.ndarray:
    return np.array([[int(((before == i) & (after == j)).sum()) for j in range(size)] for i in range(size)])


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 0.99])
def test_symmetric_flips_exactly_that_many_and_never_to_the_true_class(rate: float) -> None:
    before = LABELS.copy()
    noisy = symmetric(LABELS, 10, rate, 1, true_class_too=False)
    assert np.count_nonzero(noisy != LABELS) == round(rate * len(LABELS))
    assert noisy.dtype == np.int32
    assert noisy.min() >= 0 and noisy.max() < 10
    assert np.array_equal(before, LABELS)


def test_symmetric_makes_other_classes_equally_likely() -> None:
    counts = confusion(LABELS, symmetric(LABELS, 10, 0.9, 1, true_class_too=False), 10)
    others = counts[~np.eye(10, dtype=bool)]
    # 18,000 draws over 90 cells: 200 each with a deviation of 14; a constant shift or a missing class fails.
    assert others.min() > 130 and others.max() < 270
    assert counts.diagonal().max() < 300


def test_two_classes_swap() -> None:
    labels = np.array([0, 1] * 50, dtype=np.int32)
    noisy = symmetric(labels, 2, 0.5, 0, true_class_too=False)
    assert np.count_nonzero(noisy == 1 - labels) == 50


def test_symmetric_all_draws_the_true_class_too() -> None:
    noisy = symmetric(LABELS, 10, 0.5, 1, true_class_too=True)
    # The same 10,000 samples are drawn anew as by the other convention; a tenth of them, deviation 30, stay right.
    drawn = symmetric(LABELS, 10, 0.5, 1, true_class_too=False) != LABELS
    assert np.array_equal(noisy[~drawn], LABELS[~drawn])
    counts = confusion(LABELS[drawn], noisy[drawn], 10)
    assert counts.sum() == 10_000
    assert 850 < counts.trace() < 1_150
    assert counts.min() > 60 and counts.max() < 140  # 100 each with a deviation of 10
    two = symmetric(np.zeros(10_000, dtype=np.int32), 2, 0.99, 0, true_class_too=True)
    assert 4_700 < np.count_nonzero(two) < 5_200


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.4, 0.99])
def test_pair_flips_that_share_of_each_class_to_the_next(rate: float) -> None:
    noisy = flip(UNEVEN, following(4), rate, 3)
    expected = np.zeros((4, 4), dtype=int)
    for label, size in enumerate([7, 0, 30, 101]):
        expected[label, label] = size - round(rate * size)
        expected[label, (label + 1) % 4] += round(rate * size)
    assert np.array_equal(confusion(UNEVEN, noisy, 4), expected)
    assert noisy.dtype == np.int32


def test_flips_fall_on_samples_at_random() -> None:
    zeros = np.zeros(10_000, dtype=np.int32)
    first, other = (np.flatnonzero(flip(zeros, following(2), 0.5, seed)) for seed in (0, 1))
    assert len(first) == len(other) == 5_000
    assert abs(np.mean(first) - 5_000) < 150  # a deviation of 29
    assert 2_300 < len(np.intersect1d(first, other)) < 2_700  # a deviation of 25 from 2,500


def test_cifar10_is_mistaken_as_published() -> None:
    labels = np.repeat(np.arange(10), 50).astype(np.int32)
    counts = confusion(labels, flip(labels, similar(CIFAR10), 0.4, 0), 10)
    pairs = {(CIFAR10[i], CIFAR10[j]): int(counts[i, j]) for i, j in np.argwhere(counts) if i != j}
    assert pairs == {
        ("truck", "automobile"): 20,
        ("bird", "airplane"): 20,
        ("deer", "horse"): 20,
        ("cat", "dog"): 20,
        ("dog", "cat"): 20,
    }
    other = sorted(CIFAR10, reverse=True)
    assert [other[target] for target in similar(other)] == [
        CIFAR10[similar(CIFAR10)[CIFAR10.index(name)]] for name in other
    ]


def test_cifar100_is_mistaken_within_superclasses() -> None:
    assert len(SUPERCLASSES) == 20 and all(len(group) == 5 and list(group) == sorted(group) for group in SUPERCLASSES)
    classes = sorted(name for group in SUPERCLASSES for name in group)  # CIFAR-100 numbers its classes by name
    assert len(set(classes)) == 100
    # Numbers of CIFAR-100's own label list, which tell that the names are spelt as there.
    known = {0: "apple", 1: "aquarium_fish", 41: "lawn_mower", 47: "maple_tree", 58: "pickup_truck", 83: "sweet_pepper"}
    assert {number: classes[number] for number in known} == known and classes[99] == "worm"

    labels = np.repeat(np.arange(100), 20).astype(np.int32)
    counts = confusion(labels, flip(labels, similar(classes), 0.4, 0), 100)
    for group in SUPERCLASSES:
        for name, following_name in zip(group, [*group[1:], group[0]], strict=True):
            row = counts[classes.index(name)]
            assert row[classes.index(name)] == 12 and row[classes.index(following_name)] == 8
    assert following(3).tolist() == [1, 2, 0]


def test_other_classes_have_no_published_map() -> None:
    for classes in (["cat", "dog"], [*CIFAR10[:9], "lorry"], [*CIFAR10, "lorry"]):
        with pytest.raises(InputError, match=r"CIFAR-10 or CIFAR-100.*pair:RATE.*matrix:FILE"):
            similar(classes)


def test_a_matrix_is_realised_to_less_than_a_sample() -> None:
    rng = np.random.default_rng(0)
    values = rng.dirichlet(np.full(4, 0.7), 4)
    matrix = Matrix(values, "here")
    noisy = redraw(UNEVEN, 4, matrix.counts, 0)
    counts = confusion(UNEVEN, noisy, 4)
    sizes = np.array([7, 0, 30, 101])
    assert np.array_equal(counts.sum(axis=1), sizes)
    assert np.abs(counts - values * sizes[:, None]).max() < 1
    # No other whole numbers with these sums are nearer: moving one sample from any cell to another is never better.
    for row, share, size in zip(counts, values, sizes, strict=True):
        off = row - share * size
        assert size == 0 or max(off) - min(off) <= 1 + 1e-9


def test_largest_remainders_by_hand() -> None:
    matrix = Matrix(np.array([[0.5, 0.3, 0.2], [0.25, 0.5, 0.25], [0, 0, 1.0]]), "here")
    assert matrix.counts(0, 7).tolist() == [4, 2, 1]  # 3.5, 2.1, 1.4
    assert matrix.counts(1, 2).tolist() == [1, 1, 0]  # 0.5, 1, 0.5: the lower class gets the odd one
    assert matrix.counts(2, 1000).tolist() == [0, 0, 1000]
    rounded = Matrix(np.array([[0.3333, 0.3333, 0.3333]] * 3), "here")
    assert rounded.counts(0, 30_000).tolist() == [10_000] * 3


def test_reads_csv_and_json_alike(tmp_path: Path) -> None:
    values = [[0.9, 0.1, 0.0], [0.25, 0.5, 0.25], [0.0, 0.0, 1.0]]
    (tmp_path / "m.csv").write_text("\ufeff0.9, 0.1,0\n\n.25,5e-1,0.25\r\n0,0,1", encoding="utf-8")
    (tmp_path / "m.json").write_text("\n " + json.dumps(values))
    matrices = [read_matrix(str(tmp_path / name), name) for name in ("m.csv", "m.json")]
    packed = b"".join(struct.pack("<d", value) for row in values for value in row)
    for matrix in matrices:
        assert matrix.values.tolist() == values
        assert matrix.sha256 == hashlib.sha256(packed).hexdigest()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,0\n0.5,0.4", ["row 2 sums to 0.9"]),
        ("1,0\n0.5,0.502", ["row 2 sums to 1.002"]),
        ("1,0\n0.5,0.5\n0,1", ["row 1 has 2 numbers, but there are 3 rows"]),
        ("1,0\n1", ["row 2 has 1 numbers, but there are 2 rows"]),
        ("cat,dog\n1,0", ["row 1: 'cat' is not a number", "no header"]),
        ("1,0\n1.5,-0.5", ["row 2: 1.5 is no share"]),
        ("nan,1\n1,0", ["row 1: nan is no share"]),
        ("60,40\n1,0", ["row 1: 60 is no share", "from 0 to 1"]),
        ("[[1, 0], [1, null]]", ["row 2: None is not a number"]),
        ("[[1, 0], 5]", ["row 2 is no list"]),
        ("[[1, 0", ["no JSON can be read"]),
        ("[" * 100_000, ["no JSON can be read", "write a list of K lists"]),
        ('1,0\n"' + "0" * 200_000 + '",1', ["no numbers can be read (field larger than field limit (131072))"]),
        ("1;0\n0.5;0.5", ["semicolons between its numbers; write commas"]),
        ("1;0\n0,5;0,5", ["semicolons between its numbers; write commas between them, and points in them"]),
        ("0,5;0,5\n1;0", ["semicolons between its numbers"]),
        ("1\t0\n0\t1", ["tabs between its numbers; write commas"]),
        ("1 0\n0 1", ["spaces between its numbers; write commas"]),
        ("\n", ["the file is empty"]),
        ("[]", ["the file is empty"]),
    ],
)
def test_refuses_what_is_no_matrix_and_names_the_row(text: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(InputError) as caught:
        read_matrix(str(tmp_path / "m.csv"), "m.csv")
    assert all(word in str(caught.value) for word in ["m.csv", *words])
    assert "\n" not in str(caught.value)


def test_refuses_files_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x80")
    for path, words in [
        (tmp_path / "none", "No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "binary", "text"),
    ]:
        with pytest.raises(InputError, match=words):
            read_matrix(str(path), "m.csv")


def test_a_rounded_row_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("0.333,0.333,0.333\n0,1,0\n0.0005,0,1")
    assert read_matrix(str(tmp_path / "m.csv"), "m.csv").counts(0, 999).tolist() == [333, 333, 333]
