import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from shards.errors import InputError
from shards.readers import digits


def test_the_two_splits_share_nothing_and_miss_nothing() -> None:
    train, test = digits.read(None, "train"), digits.read(None, "test")
    assert (len(train.records), len(test.records)) == (1437, 360)
    keys = {record.key for record in train.records} | {record.key for record in test.records}
    assert len(keys) == 1797
    counts = np.bincount([record.label for record in test.records])
    assert counts.min() >= 34
    assert counts.max() <= 37
    assert digits.read(None, None) == train


def test_every_image_is_the_original() -> None:
    values, labels = load_digits(return_X_y=True)
    for source in (digits.read(None, "train"), digits.read(None, "test")):
        assert source.records == sorted(source.records)
        for record in source.records:
            index = int(Path(record.key).stem)
            with Image.open(io.BytesIO(record.content or b"")) as image:
                assert image.mode == "L"
                pixels = np.asarray(image)
            assert np.array_equal(pixels, np.rint(values[index].reshape(8, 8) * 255 / 16))
            assert record.label == record.clean_label == labels[index]


def test_refuses_a_root_and_other_splits(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave --root out"):
        digits.read(tmp_path, None)
    with pytest.raises(InputError, match="train and test"):
        digits.read(None, "val")
