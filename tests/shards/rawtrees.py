"""Clothing1M, WebVision and ImageNet's validation set in miniature: their folders, lists and quirks, our own pictures.

Each function writes a tree of tiny images and returns what a reader should find: split -> key -> (label, clean label or
-1). A class is one coarse pattern under pixel noise, so that a network learns it in a few steps.
"""

import itertools
from pathlib import Path

import numpy as np
from PIL import Image

Truth = dict[str, dict[str, tuple[int, int]]]

CLOTHES = "T-Shirt Shirt Knitwear Chiffon Sweater Hoodie Windbreaker Jacket Downcoat Suit Shawl Dress Vest Underwear"


def clothing1m(root: Path, *, lists: str = "", each: int = 12, size: int = 32, noise: float = 0.4) -> Truth:
    """14 classes: `each` noisy training images a class, and `each` // 3 of clean_train, val and test.

    lists: the folder below `root` that holds them: "", "annotations" or "images". Every second clean image has a noisy
    label too. The first image of clean_train has a line without its label, as in a copy that circulates.
    """
    rng = np.random.default_rng(0)
    names = (f"images/{n % 10}/{n % 7}/{3761328114 + n},{905362226 - n}.jpg" for n in itertools.count())
    truth: Truth = {"both": {}}
    noisy, clean, keys = [], [], {}
    for split, count in [("train", each), ("clean_train", each // 3), ("val", each // 3), ("test", each // 3)]:
        labels = rng.permutation(np.repeat(np.arange(14), count)).tolist()
        keys[split] = [next(names) for _ in labels]
        truth[split] = {}
        for number, (key, label) in enumerate(zip(keys[split], labels, strict=True)):
            _save(root / key, label, size, rng)
            given = int(rng.integers(14)) if rng.random() < noise else label
            if split == "train":
                noisy.append(f"{key} {given}")
                truth[split][key] = given, -1
            elif split == "clean_train" and number == 0:
                clean.append(key)
            else:
                clean.append(f"{key} {label}")
                truth[split][key] = label, label
                if number % 2:
                    noisy.append(f"{key} {given}")
                    truth["both"][key] = given, label
    clean[1:] = rng.permutation(clean[1:]).tolist()
    _write(root / lists / "noisy_label_kv.txt", rng.permutation(noisy).tolist())
    _write(root / lists / "clean_label_kv.txt", clean)
    for split, name in [("train", "noisy_train"), ("clean_train",) * 2, ("val", "clean_val"), ("test", "clean_test")]:
        _write(root / lists / f"{name}_key_list.txt", keys[split])
    _write(root / lists / "category_names_eng.txt", CLOTHES.split())
    _write(root / lists / "category_names_chn.txt", ["衬衫"] * 14)
    return truth


def webvision(root: Path, *, classes: int = 60, each: int = 2, size: int = 32, noise: float = 0.2) -> Truth:
    """Two queries a class; `each` images a query of Google and as many of Flickr, `each` a class in val.

    Image names repeat under every query; one in three ends in .JPG; neighbouring classes share their first word; WNIDs
    fall where labels rise. The splits are google, flickr and val. Mini-WebVision needs at least 50 classes.
    """
    rng = np.random.default_rng(0)
    truth: Truth = {"google": {}, "flickr": {}, "val": {}}
    for source, query in itertools.product(("google", "flickr"), range(2 * classes)):
        for number in range(each):
            key = f"{source}/q{query + 1:04d}/{number:03d}.{'JPG' if number % 3 == 2 else 'jpg'}"
            shown = int(rng.integers(classes)) if rng.random() < noise else query // 2
            _save(root / key, shown, size, rng)
            truth[source][key] = query // 2, -1
    for number, label in enumerate(rng.permutation(np.repeat(np.arange(classes), each)).tolist(), 1):
        key = f"val_images_256/val{number:06d}.jpg"
        _save(root / key, label, size, rng)
        truth["val"][key] = label, label
    info = root / "info"
    for name, splits in [("google", ["google"]), ("flickr", ["flickr"]), ("all", ["google", "flickr"])]:
        lines = [f"{key} {label}" for split in splits for key, (label, _) in truth[split].items()]
        _write(info / f"train_filelist_{name}.txt", lines)
    val = [f"{key.removeprefix('val_images_256/')} {label}" for key, (label, _) in truth["val"].items()]
    _write(info / "val_filelist.txt", val)
    _write(info / "synsets.txt", [f"{_wnid(k)} crane {k // 2}, Grus number {k}" for k in range(classes)])
    _write(info / "queries_synsets_map.txt", [f"{q + 1} {q // 2 + 1}" for q in range(2 * classes)])  # both from 1
    return truth


def imagenet(root: Path, *, layout: str = "val", classes: int = 60, each: int = 2, size: int = 32) -> Truth:
    """ImageNet's validation images of the classes of `webvision`, `each` a class, numbered in no order of classes.

    layout: "val" (ROOT/val/WNID/), "folders" (ROOT/WNID/) or "kaggle" (one folder and LOC_val_solution.csv). The one
    split is imagenet_val.
    """
    rng = np.random.default_rng(1)
    truth: Truth = {"imagenet_val": {}}
    rows = ["ImageId,PredictionString"]
    for number, label in enumerate(rng.permutation(np.repeat(np.arange(classes), each)).tolist(), 1):
        name = f"ILSVRC2012_val_{number:08d}"
        folder = {"val": f"val/{_wnid(label)}", "folders": _wnid(label), "kaggle": "ILSVRC/Data/CLS-LOC/val"}[layout]
        _save(root / folder / f"{name}.JPEG", label, size, rng)
        truth["imagenet_val"][f"{folder}/{name}.JPEG"] = label, label
        rows.append(f"{name},{_wnid(label)} 85 1 499 272 {_wnid(label)} 3 14 15 92 ")
    if layout == "kaggle":
        _write(root / "LOC_val_solution.csv", rows)
    return truth


def _wnid(label: int) -> str:
    return f"n{9_000_000 - 977 * label:08d}"


def _write(file: Path, lines: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))


def _save(file: Path, label: int, size: int, rng: np.random.Generator) -> None:
    coarse = np.random.default_rng(label).integers(40, 216, (4, 4, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BILINEAR))
    pixels = np.clip(pixels + rng.normal(0, 20, pixels.shape), 0, 255).astype(np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, "JPEG", quality=90)


def edit(file: Path, number: int, line: str) -> None:
    """Put `line` in the place of line `number`, counted from 1."""
    lines = file.read_text().splitlines()
    lines[number - 1] = line
    file.write_text("\n".join(lines) + "\n")
