"""WebVision 1.0: 2.4 million images that Google and Flickr found for the names of ImageNet's 1,000 classes."""

import os
import re
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

from shards.errors import InputError
from shards.readers import lists
from shards.readers.record import Record, Source, counted, first

SPLITS = ("train", "val", "imagenet_val")
QUERIES = {"google": ("google",), "flickr": ("flickr",), "both": ("google", "flickr")}
VAL_IMAGES = "val_images_256"
SYNSETS = "synsets.txt"
SOLUTION = "LOC_val_solution.csv"  # of the Kaggle edition of ImageNet: ImageId,PredictionString; its first word a WNID
KNOWN_CLASSES = 1000
KNOWN_TRAIN = {
    ("google", 50): 65_944,  # mini-WebVision
    ("google", 1000): 980_449,
    ("flickr", 1000): 1_459_125,
    ("both", 1000): 2_439_574,
}
KNOWN_VAL = 50  # a class, in both validation sets


def read(
    root: Path | None,
    split: str | None,
    queries: str | None = None,
    classes: str | None = None,
    info: str | None = None,
) -> Source:
    """Read train (the default) or val of WebVision, or imagenet_val: ImageNet's validation images in the same classes.

    queries: google, flickr or both (the default), of train alone. classes: take the first so many of synsets.txt
    (default: all). The class names are `n01440764 tench`, WNID and first word(s) of the line in synsets.txt, so they
    are equal for all splits read with equal `classes`. Labels are the lists', counted from 0; val's are true, so clean
    labels too.

    imagenet_val: ROOT, or ROOT/val, holds folders named by WNID; or ROOT holds LOC_val_solution.csv and, itself, in
    val or in ILSVRC/Data/CLS-LOC/val, the images. `info` is WebVision's folder that holds synsets.txt. WNIDs give the
    labels; ILSVRC's own numbers follow another order.

    Source: Li et al., WebVision Database: Visual Learning and Understanding from Web Data, arXiv 1708.02862. Raises
    InputError for a list that is missing, damaged or cut short, a label beyond synsets.txt, and images of the wrong
    set.
    """
    split = split or "train"
    if split not in SPLITS:
        raise InputError(f"--split {split}: WebVision has the splits {', '.join(SPLITS)}")
    if queries is not None and split != "train":
        raise InputError(f"--queries {queries}: only train was found by queries; leave it out for --split {split}")
    if info is not None and split != "imagenet_val":
        raise InputError(f"--info {info}: {split} has its lists in ROOT/info; leave it out for --split {split}")
    queries = queries or "both"
    if split == "imagenet_val":
        root = lists.folder("--root", root, "ImageNet's validation images")
        folder = lists.folder("--info", Path(info) if info is not None else None, f"WebVision's {SYNSETS}")
    else:
        root = lists.folder("--root", root, "WebVision's info, google, flickr and val_images_256")
        folder = root / "info"
    synsets = _synsets(lists.find(SYNSETS, [folder]))
    wanted = _wanted(classes, len(synsets))
    passed_over: list[str] = []
    if split == "imagenet_val":
        records, passed_over = _imagenet(root, list(synsets), wanted)
    elif split == "val":
        records = _listed(lists.find("val_filelist.txt", [folder]), len(synsets), wanted, f"{VAL_IMAGES}/", True)
    else:
        records = []
        for name in QUERIES[queries]:
            file = lists.find(f"train_filelist_{name}.txt", [folder])
            records += _listed(file, len(synsets), wanted, "", False)
    if not records:
        raise InputError(f"--root {root}: no images of {split} in the first {wanted:,} classes")
    records.sort(key=itemgetter(0))  # keys alone: comparing whole records takes five times as long
    names = tuple(synsets.values())[:wanted]
    notes = _notes(split, queries, records, names, len(synsets), passed_over)
    options: dict[str, object] = {"classes": wanted}
    if split == "train":
        options["queries"] = queries
    return Source("webvision", split, names, records, root, options, len(passed_over), notes)


def _synsets(file: Path) -> dict[str, str]:
    """Return WNID -> class name, in the order of the labels; line k is label k - 1."""
    names: dict[str, str] = {}
    for number, line in lists.lines(file):
        wnid, words = [*line.split(None, 1), ""][:2]
        if number != len(names) + 1:
            raise InputError(f"{file} line {len(names) + 1:,}: empty, but each line is a class; copy the file again")
        if not re.fullmatch(r"n\d{8}", wnid) or wnid in names:
            problem = "is there twice" if wnid in names else "is no WNID, as n01440764"
            raise InputError(f"{file} line {number:,}: {wnid!r} {problem}; copy the file again")
        names[wnid] = f"{wnid} {words.split(',')[0].strip()}".strip()
    if not names:
        raise InputError(f"{file}: empty; copy the file again")
    return names


def _wanted(classes: str | None, there: int) -> int:
    if classes is None:
        return there
    if not (classes.isascii() and classes.isdigit() and 1 <= int(classes) <= there):
        raise InputError(f"--classes {classes}: must be 1 to {there:,}, the number of lines of {SYNSETS}")
    return int(classes)


def _listed(file: Path, classes: int, wanted: int, prefix: str, clean: bool) -> list[Record]:
    """Return the images of a list whose labels are below `wanted`; all labels must be below `classes`."""
    records = []
    lines: dict[str, int] = {}
    for number, path, label in lists.entries(file, classes):
        if (line := lines.setdefault(path, number)) != number:
            raise InputError(f"{file} line {number:,}: {path} stands in line {line:,} already; keep one line")
        if label is None:
            raise InputError(f"{file} line {number:,}: {path} has no label; is the list cut short? copy it again")
        if label < wanted:
            extension = lists.extension(path)
            assert extension is not None, "the line was read strictly"
            records.append(Record(prefix + path, extension, label, label if clean else -1))
    return records


def _imagenet(root: Path, wnids: Sequence[str], wanted: int) -> tuple[list[Record], list[str]]:
    """Return ImageNet's validation images of the first `wanted` WNIDs, and the files in between that are none."""
    for base in ("val/", ""):
        if any((root / base / wnid).is_dir() for wnid in wnids):
            return _class_folders(root, base, wnids[:wanted])
    if (root / SOLUTION).is_file():
        return _flat(root, wnids, wanted), []
    raise InputError(
        f"--root {root}: neither class folders (n01440764/, in it or in its folder val) nor {SOLUTION}; give the "
        "folder of ImageNet's validation images"
    )


def _class_folders(root: Path, base: str, wnids: Sequence[str]) -> tuple[list[Record], list[str]]:
    records: list[Record] = []
    passed_over: list[str] = []
    empty: list[str] = []
    for label, wnid in enumerate(wnids):
        before = len(records)
        names = sorted(os.listdir(root / base / wnid)) if (root / base / wnid).is_dir() else []
        for name in names:
            extension = lists.extension(name)
            if name.startswith(".") or extension is None:
                passed_over.append(f"{base}{wnid}/{name}")
                continue
            if name.startswith(f"{wnid}_"):
                raise InputError(
                    f"--root {root}: {base}{wnid}/{name} is one of ImageNet's training images; give the folder of its "
                    "validation images"
                )
            records.append(Record(f"{base}{wnid}/{name}", extension, label, label))
        if len(records) == before:
            empty.append(wnid)
    if empty:
        raise InputError(
            f"--root {root}: no image in the folders of {len(empty):,} classes ({first(empty)}); bring them, or take "
            "fewer classes with --classes"
        )
    return records, passed_over


def _flat(root: Path, wnids: Sequence[str], wanted: int) -> list[Record]:
    file = root / SOLUTION
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    listed: list[tuple[str, int]] = []
    for number, line in lists.lines(file):
        image, _, prediction = line.partition(",")
        if number == 1 and image == "ImageId":
            continue
        wnid = prediction.split(" ")[0]
        if not re.fullmatch(r"ILSVRC2012_val_\d{8}", image) or wnid not in labels:
            raise InputError(
                f"{file} line {number:,}: {line[:80]!r} is not ILSVRC2012_val_NUMBER,WNID with a WNID of {SYNSETS}; "
                "copy the file again"
            )
        if labels[wnid] < wanted:
            listed.append((image, labels[wnid]))
    images = {image for image, _ in listed}
    places = ("", "val/", "ILSVRC/Data/CLS-LOC/val/")
    for base in places:
        names = os.listdir(root / base) if (root / base).is_dir() else []
        files = {os.path.splitext(name)[0]: name for name in names if lists.extension(name)}
        if files.keys() & images:
            break
    else:
        raise InputError(f"--root {root}: none of the images of {SOLUTION} is in it, in val or in {places[-1]}")
    return [
        Record(base + (name := files.get(image, f"{image}.JPEG")), lists.extension(name) or "jpg", label, label)
        for image, label in listed
    ]


def _notes(
    split: str,
    queries: str,
    records: Sequence[Record],
    names: Sequence[str],
    there: int,
    passed_over: Sequence[str],
) -> tuple[str, ...]:
    """Return what differs from the published dataset, and which files were no images."""
    notes = []
    if passed_over:
        notes.append(f"passed over {counted(len(passed_over), 'file')} other than images ({first(passed_over)})")
    if there != KNOWN_CLASSES:
        notes.append(f"{SYNSETS} has {there:,} classes; WebVision 1.0 has {KNOWN_CLASSES:,}")
    count = len(records)
    if split != "train":
        known: int | None = KNOWN_VAL * len(names)
    else:
        known = KNOWN_TRAIN.get((queries, len(names)))
    if known is not None and count != known:
        part = f"{split} of {queries}" if split == "train" else split
        notes.append(f"{count:,} images; {part} has {known:,} of {len(names):,} classes")
    without = sorted(set(range(len(names))) - {record.label for record in records})
    if without:
        notes.append(f"{len(without):,} classes have no image ({first([names[label] for label in without])})")
    return tuple(notes)
