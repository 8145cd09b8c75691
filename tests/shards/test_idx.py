import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rawsmall import make_fashion

from shards.errors import InputError
from shards.readers import idx

LABELS, IMAGES = "t10k-labels-idx1-ubyte", "t10k-images-idx3-ubyte"


def test_every_image_is_the_original(tmp_path: Path) -> None:
    images, labels = make_fashion(tmp_path / "raw")
    train, test = idx.read(tmp_path / "raw", None), idx.read(tmp_path / "raw", "test")
    assert (train.split, len(train.records), len(test.records)) == ("train", 20, 10)
    assert (train.classes[0], train.classes[9]) == ("T-shirt/top", "Ankle boot")
    assert train.notes == ("20 images; MNIST and Fashion-MNIST have 60,000 in train",)
    for source in (train, test):
        for i, record in enumerate(source.records):
            assert record.key == f"{source.split}/{i:05d}.png"
            assert record.label == record.clean_label == labels[i]
            assert isinstance(record.content, bytes)
            with Image.open(io.BytesIO(record.content)) as image:
                assert (image.mode, image.format) == ("L", "PNG")
                assert np.array_equal(np.asarray(image), images[i])


def test_class_names(tmp_path: Path) -> None:
    make_fashion(tmp_path)
    assert idx.read(tmp_path, None, "digits").classes == tuple("0123456789")
    names = tmp_path / "names.txt"
    names.write_text("".join(f"letter {letter}\n" for letter in "abcdefghijkl"))
    assert len(idx.read(tmp_path, None, None, str(names)).classes) == 12
    names.write_text("a\nb\nc\n")
    with pytest.raises(InputError, match="label 3 of image 1 is none of the 3 classes"):
        idx.read(tmp_path, None, None, str(names))
    with pytest.raises(InputError, match="two sets of class names"):
        idx.read(tmp_path, None, "digits", str(names))


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        (LABELS, b"\0\0\x08\x03\0\0\0\0", "begins with 00 00 08 03, not 00 00 08 01"),
        (LABELS, b"\0\0\x08\x01\0\0\0\x09" + bytes(9), f"{LABELS}: 9 labels for 10 images in {IMAGES}"),
        (LABELS, b"\0\0\x08\x01\0\0\0\x0a" + bytes(9), "9 bytes after its header, which says 10"),
        (LABELS, b"\0\0\x08\x01\0\0\0\x0a" + bytes(11), "11 bytes after its header, which says 10"),
        (LABELS, b"\0\0\x08", "no IDX file"),
        (LABELS, gzip.compress(b"\0\0\x08\x01\0\0\0\x0a" + bytes(10), mtime=0), "begins with 1f 8b"),
        (IMAGES, b"\0\0\x08\x03" + struct.pack(">III", 10, 28, 28), "0 bytes after its header, which says 7,840"),
        (IMAGES, b"\0\0\x08\x03" + struct.pack(">III", *[2**32 - 1] * 3), "0 bytes after its header"),
        (IMAGES, b"\0\0\x08\x03" + struct.pack(">III", 10, 256, 256) + bytes(10 << 16), "images of 256 x 256 pixels"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    make_fashion(tmp_path)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=words) as caught:
        idx.read(tmp_path, "test")
    assert "\n" not in str(caught.value)


def test_damaged_gzip(tmp_path: Path) -> None:
    make_fashion(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    for data in (whole[:-20], b"text" + whole, whole[:5000] + b"\xff" * 50 + whole[5050:]):
        file.write_bytes(data)
        with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz: damaged or cut short"):
            idx.read(tmp_path, None)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_fashion(tmp_path)
    whole = 16 + 20 * 28 * 28
    monkeypatch.setattr(idx, "LARGEST", whole)
    assert len(idx.read(tmp_path, None).records) == 20
    monkeypatch.setattr(idx, "LARGEST", whole - 1)
    with pytest.raises(InputError, match=rf"idx3-ubyte\.gz: more than {whole - 1:,} bytes, unpacked"):
        idx.read(tmp_path, None)


def test_what_is_missing(tmp_path: Path) -> None:
    make_fashion(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    for words, root, split in [
        ("--root FOLDER is needed", None, None),
        ("train-labels-idx1-ubyte is missing, and train-labels-idx1-ubyte.gz too", tmp_path, None),
        ("--split val: IDX files have the splits train and test", tmp_path, "val"),
    ]:
        with pytest.raises(InputError, match=words):
            idx.read(root, split)
