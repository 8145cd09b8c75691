"""What is trained on, and with which labels, laid over a dataset that stays as it is."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.data.selection import select
from shards.errors import InputError
from shards.manifest import Manifest


def test_a_dataset_as_it_is(photos: Manifest) -> None:
    chosen = select(photos)
    assert chosen.active is None and chosen.fingerprint is None and chosen.num_active == 120
    assert np.array_equal(chosen.active_labels, photos.labels) and np.array_equal(chosen.ids, np.arange(120))
    assert select(photos, 1.0).fingerprint is None


def test_shares_are_nested_and_parts_share_nothing(photos: Manifest) -> None:
    tenth, half = (select(photos, share).active for share in (0.1, 0.5))
    assert len(tenth) == 12 and len(half) == 60 and set(tenth) < set(half)
    parts = [select(photos, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(np.concatenate([part.active for part in parts])) == list(range(120))
    assert np.array_equal(select(photos, "1/2").active, half)
    assert len({part.fingerprint for part in parts} | {None}) == 4
    # Drawn, not cut off: ids of a part are spread over the dataset.
    assert half.min() < 10 and half.max() > 109 and not np.array_equal(half, np.arange(0, 120, 2))


def test_a_list_of_ids_or_keys(photos: Manifest, tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("7\n119\n\n3\n")
    by_id = select(photos, str(file))
    assert by_id.active.tolist() == [3, 7, 119]
    file.write_text("".join(f"{photos.key(i)}\n" for i in (119, 7, 3)))
    by_key = select(photos, str(file))
    assert by_key.active.tolist() == [3, 7, 119]
    assert by_key.fingerprint == by_id.fingerprint


def test_an_overlay_changes_labels_and_drops(photos: Manifest, tmp_path: Path) -> None:
    file = tmp_path / "overlay.csv"
    other = int(photos.labels[5] + 1) % 3
    file.write_text(f'label,note,key\nclass-{other},"a, b",{photos.key(5)}\ndrop,,{photos.key(9)}\n')
    chosen = select(photos, relabel=str(file))
    wanted = photos.labels.copy()
    wanted[5] = other
    assert np.array_equal(chosen.labels, wanted)
    assert chosen.active.tolist() == [i for i in range(120) if i != 9]
    assert np.array_equal(chosen.active_labels, np.delete(wanted, 9))
    file.write_text(f"\ufeffid,label\r\n5,{other}\r\n9,drop\r\n")  # as spreadsheets write it
    assert select(photos, relabel=str(file)).fingerprint == chosen.fingerprint
    assert np.array_equal(np.load(photos.root / "samples.npy")["label"], photos.labels)
    # Both together: dropped samples are in no part.
    halves = [select(photos, part, str(file)).active for part in ("1/2", "2/2")]
    assert sorted(np.concatenate(halves)) == chosen.active.tolist()


def test_an_overlay_that_changes_nothing_is_the_dataset(photos: Manifest, tmp_path: Path) -> None:
    file = tmp_path / "same.csv"
    file.write_text(f"id,label\n0,class-{photos.labels[0]}\n")
    assert select(photos, relabel=str(file)).fingerprint is None


def test_keys_come_one_after_the_other(photos: Manifest) -> None:
    assert list(photos.keys()) == [photos.key(i) for i in range(120)]


@pytest.mark.parametrize(
    ("subset", "words"),
    [
        (0.0, "data.subset = 0.0: a share must be above 0"),
        (0.001, "leave nothing of"),
        ("3/2", "write I/N with I from 1 to N"),
        ("{file}", r"2 of its keys are not in .* \(no/such.jpg, x\)"),
        ("/nowhere", "data.subset = '/nowhere' cannot be read: No such file"),
        ("10%", "cannot be read: No such file or directory; a share is a number, as in 0.1"),
    ],
)
def test_a_subset_that_fits_nothing_is_named(photos: Manifest, tmp_path: Path, subset: object, words: str) -> None:
    file = tmp_path / "list.txt"
    file.write_text(f"{photos.key(0)}\nno/such.jpg\nx\n")
    with pytest.raises(InputError, match=words):
        select(photos, str(file) if subset == "{file}" else subset)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must name the columns id or key, and label"),
        ("path,label\n", "must name the columns id or key, and label"),
        ("id,label\n0,class-0\n1\n", "line 3: 1 columns, 2 in the first line"),
        ("id,label\n0,class-9\n", "line 2: 'class-9' is no class, no number below 3, and not 'drop'"),
        ("id,label\n0,3\n", "line 2: '3' is no class"),
        ("id,label\n120,drop\n-1,drop\n", r"2 of its ids are not in .* \(120, -1\)"),
        ("id,label\n4,drop\n5,0\n4,1\n", "named twice: 4; name each id once"),
        ("id,label\n1,0\n2,1", "its last line has no end, so it may be cut short"),
        ("id,label,id\n1,0,2\n", "must name the columns id or key"),
        ("id,label\n" + "9" * 5000 + ",0\n", "1 of its ids are not in"),
        ("id,label\n1," + "9" * 5000 + "\n", "is no class, no number below 3"),
        ("id,label\n1," + "x" * 200_000 + "\n", "not CSV"),
        ("id,label\n" + "".join(f"{i},drop\n" for i in range(120)), "leave nothing of"),
    ],
)
def test_an_overlay_that_fits_nothing_is_named(photos: Manifest, tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "overlay.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        select(photos, relabel=str(file))
    assert "\n" not in str(caught.value)
