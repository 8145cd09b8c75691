"""IDX files, the layout of MNIST and of what imitates it: Fashion-MNIST, KMNIST."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.readers import classes as class_names
from shards.readers import lists, png
from shards.readers.record import Record, Source

SPLITS = {"train": "train", "test": "t10k"}  # how the files of a split begin
# fmt: off
NAMES = {
    "fashion": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
    "digits": tuple("0123456789"),
}
# fmt: on
IMAGES, LABELS = 3, 1  # number of dimensions, in the file's name and its magic number
LARGEST = 1 << 30  # bytes of a file, unpacked: EMNIST's largest has 547 MB
KNOWN = {"train": 60_000, "test": 10_000}


def read(root: Path | None, split: str | None, names: str | None = None, classes: str | None = None) -> Source:
    """Read train (the default) or test, as grey PNG whose pixels are the original's; labels are clean.

    ROOT holds train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, each
    as it is or as .gz. names: the class names, fashion (the default) or digits; or classes: a file that names them, one
    a line. Keys are `train/00042.png`, numbered in the order of the file.

    Sources: LeCun's MNIST page for the format; Xiao, Rasul, Vollgraf, Fashion-MNIST, arXiv 1708.07747. Raises
    InputError for a file that is missing, cut short or of another kind, for files that do not belong together, and for
    a label beyond the classes.
    """
    split = split or "train"
    if split not in SPLITS:
        raise InputError(f"--split {split}: IDX files have the splits {' and '.join(SPLITS)}")
    if names is not None and classes is not None:
        raise InputError(f"--names {names}, --classes {classes}: two sets of class names; leave one out")
    root = lists.folder("--root", root, "train-images-idx3-ubyte and its like, or .gz")
    known = NAMES[names or "fashion"] if classes is None else class_names.named(Path(classes))
    images_file, images = _array(root, f"{SPLITS[split]}-images-idx{IMAGES}-ubyte", IMAGES)
    labels_file, labels = _array(root, f"{SPLITS[split]}-labels-idx{LABELS}-ubyte", LABELS)
    if len(images) != len(labels):
        raise InputError(f"{labels_file}: {len(labels):,} labels for {len(images):,} images in {images_file.name}")
    if images.shape[1] * (images.shape[2] + 1) >= 1 << 16 or 0 in images.shape[1:]:
        raise InputError(f"{images_file}: images of {images.shape[2]} x {images.shape[1]} pixels; at most 255 x 255")
    wrong = np.flatnonzero(labels >= len(known))
    if len(wrong):
        raise InputError(
            f"{labels_file}: label {labels[wrong[0]]} of image {wrong[0]:,} is none of the {len(known)} classes; name "
            "all classes with --classes FILE"
        )
    records = [
        Record(f"{split}/{i:05d}.png", "png", label, label, png.encode(image))
        for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True))
    ]
    records.sort()
    notes = []
    if len(records) != KNOWN[split]:
        notes.append(f"{len(records):,} images; MNIST and Fashion-MNIST have {KNOWN[split]:,} in {split}")
    return Source("idx", split, known, records, root, notes=tuple(notes))


def _array(root: Path, name: str, dimensions: int) -> tuple[Path, NDArray[np.uint8]]:
    """Return the file and the array in it, uint8 with `dimensions` axes."""
    file = next((root / n for n in (name, f"{name}.gz") if (root / n).is_file()), None)
    if file is None:
        raise InputError(
            f"--root {root}: {name} is missing, and {name}.gz too; MNIST's layout has images and labels "
            "of train and t10k"
        )
    try:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as stream:
            data = stream.read(LARGEST + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{file}: damaged or cut short ({error}); fetch it again") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    if len(data) > LARGEST:
        raise InputError(f"{file}: more than {LARGEST:,} bytes, unpacked; no IDX file of images this small")
    magic = bytes((0, 0, 8, dimensions))  # 8: unsigned bytes
    start = 4 + 4 * dimensions
    if data[:4] != magic or len(data) < start:
        raise InputError(f"{file}: begins with {data[:4].hex(' ')}, not {magic.hex(' ')}; no IDX file of this kind")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    expected = int(np.prod(shape, dtype=object))
    if len(data) - start != expected:
        raise InputError(
            f"{file}: {len(data) - start:,} bytes after its header, which says {expected:,}; fetch it again"
        )
    return file, np.frombuffer(data, np.uint8, offset=start).reshape(shape)
