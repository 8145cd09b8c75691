"""Small raw datasets in the layouts of the published ones, for tests of the readers and of what the docs show.

Every maker fills `root` and returns what a test compares with; pictures differ from each other.
"""

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DISHES = ("apple_pie", "baby_back_ribs", "waffles")


def jpeg(seed: int, width: int = 24, height: int = 18) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


class Python2(pickle._Pickler):  # type: ignore[name-defined]
    """Writes str and bytes as Python 2 wrote its str: the published batches are such pickles."""

    dispatch = pickle._Pickler.dispatch.copy()  # type: ignore[attr-defined]

    def save_text(self, text: str | bytes) -> None:
        data = text.encode("latin1") if isinstance(text, str) else text
        self.write(b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_text


def python2(document: object) -> bytes:
    file = io.BytesIO()
    Python2(file, protocol=2).dump(document)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def torch_zip(document: object) -> bytes:
    """What torch.save writes of a dictionary of numpy arrays."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("labels/data.pkl", pickle.dumps(document, protocol=2))
        archive.writestr("labels/version", "3\n")
    return file.getvalue()


def make_cifar10(root: Path, each: int = 8) -> tuple[NDArray[np.uint8], list[int], dict[str, NDArray[Any]]]:
    """Five batches and a test batch of `each` images, and labels of people; return all six batches' pixels [N, 3072],
    their labels, and the label sets of the first five."""
    rng = np.random.default_rng(10)
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = rng.integers(0, 256, (6 * each, 3072), dtype=np.uint8)
    labels = [i * 7 % 10 for i in range(6 * each)]
    for number in range(6):
        part = slice(number * each, (number + 1) * each)
        batch = {"batch_label": "a batch", "labels": labels[part], "data": pixels[part], "filenames": ["x.png"] * each}
        (folder / (f"data_batch_{number + 1}" if number < 5 else "test_batch")).write_bytes(python2(batch))
    (folder / "batches.meta").write_bytes(python2({"num_cases_per_batch": each, "label_names": list(CIFAR10)}))
    clean = np.array(labels[: 5 * each])
    sets = {"clean_label": clean}
    for step, name in enumerate(("aggre", "worse", "random_label1", "random_label2", "random_label3"), 2):
        noisy = np.where(np.arange(len(clean)) % step == 0, (clean + step) % 10, clean)
        sets[name if "_" in name else f"{name}_label"] = noisy
    (root / "CIFAR-10_human.pt").write_bytes(torch_zip(sets))
    return pixels, labels, sets


def make_cifar100(root: Path, each: int = 12) -> list[int]:
    """Return the fine labels of train; those of test are the same, backwards."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    labels = [i * 37 % 100 for i in range(each)]
    for name, fine in (("train", labels), ("test", labels[::-1])):
        pixels = np.random.default_rng(each).integers(0, 256, (each, 3072), dtype=np.uint8)
        (folder / name).write_bytes(python2({"fine_labels": fine, "coarse_labels": [0] * each, "data": pixels}))
    names = {"fine_label_names": [f"fine {i:02d}" for i in range(100)], "coarse_label_names": ["coarse"] * 20}
    (folder / "meta").write_bytes(python2(names))
    return labels


def make_food101n(root: Path) -> dict[str, int]:
    """Return image -> verdict, -1 where nobody checked it."""
    verdicts = {f"{dish}/{dish[0]}{i}.jpg": (-1, 1, 0, 1)[i % 4] for dish in DISHES for i in range(6)}
    (root / "meta").mkdir(parents=True)
    for seed, key in enumerate(verdicts):
        (root / "images" / key).parent.mkdir(parents=True, exist_ok=True)
        (root / "images" / key).write_bytes(jpeg(seed))
    (root / "meta/classes.txt").write_text("class_name\n" + "".join(f"{dish}\n" for dish in DISHES))
    (root / "meta/imagelist.tsv").write_text("class_name/key\n" + "".join(f"{key}\n" for key in verdicts))
    checked = [(key, verdict) for key, verdict in verdicts.items() if verdict >= 0]
    for name, part in (("train", checked[3:]), ("val", checked[:3])):
        lines = "".join(f"{key}\t{verdict}\n" for key, verdict in part)
        (root / f"meta/verified_{name}.tsv").write_text("class_name/key\tverification_label\n" + lines)
    return verdicts


def make_food101(root: Path) -> list[str]:
    keys = [f"{dish}/{100 + i}" for dish in DISHES for i in range(4)]
    (root / "meta").mkdir(parents=True)
    for seed, key in enumerate(keys):
        (root / "images" / key).parent.mkdir(parents=True, exist_ok=True)
        (root / "images" / f"{key}.jpg").write_bytes(jpeg(100 + seed))
    (root / "meta/classes.txt").write_text("".join(f"{dish}\n" for dish in DISHES))
    (root / "meta/test.txt").write_text("\n".join(keys[::2]))  # without an end of line, as published
    return keys[::2]


def make_animal10n(root: Path, each: int = 2) -> None:
    for folder in ("training", "testing"):
        (root / folder).mkdir(parents=True)
        for i in range(10 * each):
            (root / folder / f"{i % 10}_{i:05d}.jpg").write_bytes(jpeg(i))


def make_fashion(root: Path, count: int = 20) -> tuple[NDArray[np.uint8], list[int]]:
    """Return the images of train, [N, 28, 28], and its labels; test are the first half, not packed."""
    root.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(28).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = [i * 3 % 10 for i in range(count)]
    for name, n, pack in (("train", count, gzip.compress), ("t10k", count // 2, bytes)):
        packed = ".gz" if pack is gzip.compress else ""
        header = struct.pack(">BBBBIII", 0, 0, 8, 3, n, 28, 28)
        (root / f"{name}-images-idx3-ubyte{packed}").write_bytes(pack(header + images[:n].tobytes()))
        header = struct.pack(">BBBBI", 0, 0, 8, 1, n)
        (root / f"{name}-labels-idx1-ubyte{packed}").write_bytes(pack(header + bytes(labels[:n])))
    return images, labels


def make_list(root: Path) -> None:
    """Images, train.csv without a header, val.tsv with one and clean labels, and classes.txt."""
    (root / "pictures").mkdir(parents=True)
    for i in range(12):
        (root / f"pictures/p, {i:02d}.jpg").write_bytes(jpeg(i))
    names = ("cat", "dog", "ox")
    (root / "train.csv").write_text("".join(f'"pictures/p, {i:02d}.jpg",{names[i % 3]}\n' for i in range(8)))
    lines = "".join(f"{i % 2}\tpictures/p, {i:02d}.jpg\t{i % 3}\n" for i in range(8, 12))
    (root / "val.tsv").write_text("label\tpath\tclean\n" + lines)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in names))


def write_tar(path: Path, files: Sequence[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def sample(key: str, seed: int, fields: Mapping[str, object]) -> list[tuple[str, bytes]]:
    label = str(fields["label"]).encode()
    return [(f"{key}.jpg", jpeg(seed)), (f"{key}.cls", label), (f"{key}.json", json.dumps(fields).encode())]


def make_tars(root: Path) -> None:
    """Two tars of six samples; label in .cls and .json, `truth` in the .json of every other sample."""
    for tar in range(2):
        files: list[tuple[str, bytes]] = []
        for i in range(6):
            fields = {"label": i % 3, "caption": "a picture"} | ({"truth": (i + tar) % 3} if i % 2 else {})
            files += sample(f"part/{i:05d}", 10 * tar + i, fields)
        write_tar(root / f"{tar:05d}.tar", files, (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)[tar])


# The raw folders that docs/readers.md reads, by their names below raw/.
MAKERS: dict[str, Callable[[Path], object]] = {
    "cifar10": make_cifar10,
    "cifar100": make_cifar100,
    "food101n": make_food101n,
    "food101": make_food101,
    "animal10n": make_animal10n,
    "fashion-mnist": make_fashion,
    "list": make_list,
    "tars": make_tars,
}
