"""CIFAR-10 and CIFAR-100 as published for Python, and the human labels of CIFAR-10N and CIFAR-100N."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.readers import labelsets, lists, pickles, png
from shards.readers.record import Record, Source

SIDE = 32
KNOWN = {"train": 50_000, "test": 10_000}


@dataclass(frozen=True)
class Variant:
    """How one of the two datasets lies in its folder."""

    name: str
    folder: str
    batches: dict[str, tuple[str, ...]]  # split -> files, in order
    meta: str
    names: str  # key of the class names in `meta`
    labels: str  # key of the labels in a batch
    sets: tuple[str, ...]  # the human label sets

    @property
    def files(self) -> tuple[str, ...]:
        """All its files."""
        return (self.meta, *self.batches["train"], *self.batches["test"])


VARIANTS = (
    Variant(
        "CIFAR-10",
        "cifar-10-batches-py",
        {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)},
        "batches.meta",
        "label_names",
        "labels",
        ("aggre_label", "worse_label", "random_label1", "random_label2", "random_label3"),
    ),
    Variant(
        "CIFAR-100",
        "cifar-100-python",
        {"train": ("train",), "test": ("test",)},
        "meta",
        "fine_label_names",
        "fine_labels",
        ("noisy_label",),
    ),
)
ALIASES = {"worst": "worse_label", "worst_label": "worse_label", "aggregate": "aggre_label"} | {
    label_set.replace("_label", ""): label_set for variant in VARIANTS for label_set in variant.sets
}


def read(root: Path | None, split: str | None, labels: str | None = None, label_set: str | None = None) -> Source:
    """Read train (the default) or test, as PNG whose pixels are the original's; CIFAR-100 with its fine labels.

    The batches may lie in ROOT or in its cifar-10-batches-py or cifar-100-python. They are pickles, and are read
    without running them (`pickles`). Keys are `train/00042.png`, numbered in the order of the batches. labels: a file
    of CIFAR-10N or CIFAR-100N, .pt, .npy or .csv, for train; label_set: which labels of it to train on, as worse_label,
    worse or worst. The clean labels are always the batches'.

    Sources: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; Wei et al., Learning with Noisy
    Labels Revisited, ICLR 2022. Raises InputError for a file that is missing, damaged or no such batch, and for labels
    that belong to other images.
    """
    split = split or "train"
    if split not in KNOWN:
        raise InputError(f"--split {split}: CIFAR has the splits {' and '.join(KNOWN)}")
    home, variant = _home(lists.folder("--root", root, "CIFAR's python batches"), split)
    chosen = _label_set(variant, split, labels, label_set)
    classes = _classes(home / variant.meta, variant)
    batches = [_batch(home / name, variant, len(classes)) for name in variant.batches[split]]
    images = np.concatenate([pixels for pixels, _ in batches])
    clean = np.concatenate([labels for _, labels in batches])
    given, notes = clean, []
    if labels is not None:
        given = labelsets.load(Path(labels), chosen, clean, len(classes))
        wrong = np.count_nonzero(given != clean)
        notes.append(
            f"{chosen}: {wrong:,} of {len(clean):,} labels ({wrong / len(clean):.2%}) differ from the clean ones"
        )
    if len(clean) != KNOWN[split]:
        notes.append(f"{len(clean):,} images; {variant.name} has {KNOWN[split]:,} in {split}")
    records = [
        Record(f"{split}/{i:05d}.png", "png", label, true, png.encode(image))
        for i, (image, label, true) in enumerate(zip(images, given.tolist(), clean.tolist(), strict=True))
    ]
    options = {"dataset": variant.name, "label_set": chosen or None}
    return Source("cifar", split, classes, records, root, options, notes=tuple(notes))


def _home(root: Path, split: str) -> tuple[Path, Variant]:
    """Return the folder of the batches and whose they are; raises InputError unless those of `split` are there."""
    found = [
        (home, variant)
        for variant in VARIANTS
        for home in (root, root / variant.folder)
        if any((home / name).is_file() for name in variant.files)
    ]
    layout = "; ".join(f"{variant.name}: {', '.join(variant.files)}" for variant in VARIANTS)
    if not found:
        folders = " or ".join(variant.folder for variant in VARIANTS)
        raise InputError(f"--root {root}: no CIFAR batches in it, nor in its {folders} ({layout})")
    if len(found) > 1:
        raise InputError(f"--root {root}: two datasets, {found[0][0]} and {found[1][0]}; give one of these folders")
    home, variant = found[0]
    missing = [name for name in (variant.meta, *variant.batches[split]) if not (home / name).is_file()]
    if missing:
        raise InputError(f"{home}: {', '.join(missing)} missing; {variant.name} has {', '.join(variant.files)}")
    return home, variant


def _label_set(variant: Variant, split: str, labels: str | None, label_set: str | None) -> str:
    """Return the name of the label set in the file, "" where none is asked for."""
    if labels is None and label_set is None:
        return ""
    known = ", ".join(variant.sets)
    if split != "train":
        raise InputError(f"--labels, --label-set: only train has human labels; leave them out with --split {split}")
    if label_set is None:
        raise InputError(f"--labels {labels}: name one of its sets with --label-set: {known}")
    if labels is None:
        raise InputError(f"--label-set {label_set}: give the file of {variant.name}N with --labels FILE")
    name = ALIASES.get(label_set.lower(), label_set.lower())
    if name not in variant.sets:
        raise InputError(f"--label-set {label_set}: {variant.name}N has {known}")
    return name


def _classes(file: Path, variant: Variant) -> tuple[str, ...]:
    names = pickles.load(file).get(variant.names)
    if not isinstance(names, list) or not names or not all(isinstance(name, str | bytes) for name in names):
        raise InputError(f"{file}: no class names in {variant.names!r}; fetch {variant.name} for Python again")
    return tuple(name.decode("latin1") if isinstance(name, bytes) else name for name in names)


def _batch(file: Path, variant: Variant, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images, uint8 [N, 32, 32, 3], and labels, int64 [N]."""
    batch = pickles.load(file)
    pixels, labels = batch.get("data"), batch.get(variant.labels)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3 * SIDE * SIDE,):
        raise InputError(f"{file}: no images, bytes [N, {3 * SIDE * SIDE}], in 'data'; fetch {variant.name} again")
    if not isinstance(labels, list) or len(labels) != len(pixels):
        raise InputError(
            f"{file}: no label for each of its {len(pixels):,} images in {variant.labels!r}; fetch it again"
        )
    if not all(type(label) is int and 0 <= label < classes for label in labels):
        wrong = next(label for label in labels if not (type(label) is int and 0 <= label < classes))
        shown = "of thousands of digits" if isinstance(wrong, int) and wrong.bit_length() > 999 else f"{wrong!r:.40}"
        raise InputError(f"{file}: label {shown} is none of 0 to {classes - 1}; fetch {variant.name} again")
    planes = pixels.reshape(-1, 3, SIDE, SIDE)  # a plane each of red, green and blue
    return planes.transpose(0, 2, 3, 1), np.array(labels, dtype=np.int64)
