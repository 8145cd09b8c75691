"""Clothing1M: a million shop photographs in 14 classes, labelled by the words around them; some also by people."""

from operator import itemgetter
from pathlib import Path

from shards.errors import InputError
from shards.readers import lists
from shards.readers.record import Record, Source, counted, first

# fmt: off
CLASSES = (
    "T-Shirt", "Shirt", "Knitwear", "Chiffon", "Sweater", "Hoodie", "Windbreaker",
    "Jacket", "Down Coat", "Suit", "Shawl", "Dress", "Vest", "Underwear",
)
# fmt: on
KEY_LISTS = {
    "train": "noisy_train_key_list.txt",
    "clean_train": "clean_train_key_list.txt",
    "val": "clean_val_key_list.txt",
    "test": "clean_test_key_list.txt",
}
NOISY, CLEAN, NAMES = "noisy_label_kv.txt", "clean_label_kv.txt", "category_names_eng.txt"
KNOWN = {"train": 1_000_000, "clean_train": 47_570, "val": 14_313, "test": 10_526, "both": 37_497}
FEW = 5  # lines without a label that are left out and said: one circulates; more mean a damaged list


def read(root: Path | None, split: str | None) -> Source:
    """Read one split, by its key list: train (the default), clean_train, val, test; or both.

    train has the noisy labels, and the clean one too where there is one; clean_train, val and test have the clean
    labels in both places. `both` are all images of either kind that carry both labels: known noise. Its images are in
    the clean splits too.

    The lists may lie in ROOT, in ROOT/annotations or in ROOT/images, and ROOT may be the folder images itself. Keys are
    `images/...` as listed; only where ROOT holds the numbered folders under another name is `images/` left away. Up to
    five lines without a label are left out and said.

    Source: Xiao et al., Learning from Massive Noisy Labeled Data for Image Classification, CVPR 2015. Raises InputError
    for a list that is missing, damaged or cut short, for a label beyond the classes, and for classes in another order.
    """
    split = split or "train"
    if split not in KNOWN:
        raise InputError(f"--split {split}: Clothing1M has the splits {', '.join(KNOWN)}")
    root, cut = _home(lists.folder("--root", root, "Clothing1M's lists and its folder images"))
    folders = (root, root / "annotations", root / "images")
    clean_file = lists.find(CLEAN, folders)
    clean, clean_lost = _labels(clean_file)
    given_file, given, given_lost = clean_file, clean, clean_lost
    if split in ("train", "both"):
        given_file = lists.find(NOISY, folders)
        given, given_lost = _labels(given_file)
    lost: list[str] = []
    if split == "both":
        keys = [key for key in given if key in clean]
    else:
        keys, lost = _keys(lists.find(KEY_LISTS[split], folders), given_file, given, given_lost)
    records = []
    for key in keys:
        extension = lists.extension(key)
        assert extension is not None, "its label's line was read strictly"
        records.append(Record(key.removeprefix(cut), extension, given[key], clean.get(key, -1)))
    if not records:
        raise InputError(f"--root {root}: no images in {split}; a list is empty, copy the lists again")
    records.sort(key=itemgetter(0))  # keys alone: comparing whole records takes five times as long
    notes = _compare_names(folders)
    if lost:
        notes.append(f"left out {counted(len(lost), 'image')} whose line has no label ({first(lost)})")
    if split == "train" and (overlap := sum(record.clean_label >= 0 for record in records)):
        notes.append(f"{counted(overlap, 'image')} of train with a clean label: val or test may hold the same")
    if len(records) != KNOWN[split]:
        notes.append(f"{len(records):,} images; Clothing1M has {KNOWN[split]:,} in {split}")
    return Source("clothing1m", split, CLASSES, records, root, notes=tuple(notes))


def _home(root: Path) -> tuple[Path, str]:
    """Return the folder that listed paths are relative to, and what to cut off their beginning."""
    if (root / "images").is_dir():
        return root, ""
    if root.absolute().name == "images":
        return (root if root.name else root.absolute()).parent, ""
    numbered = any((root / str(digit)).is_dir() for digit in range(10))
    return root, "images/" if numbered else ""


def _labels(file: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Return path -> label, and path -> line of the few lines that have none."""
    labels: dict[str, int] = {}
    lost: dict[str, int] = {}
    number = 0
    for number, path, label in lists.entries(file, len(CLASSES)):
        if label is None:
            lost[path] = number
        elif labels.setdefault(path, label) != label:
            raise InputError(
                f"{file} line {number:,}: {path} has label {label} here and {labels[path]} further up; keep one line"
            )
    if number in lost.values():
        raise InputError(f"{file} line {number:,}: cut short, its last line has no label; copy the file again")
    if len(lost) > FEW:
        path, number = next(iter(lost.items()))
        raise InputError(
            f"{file} line {number:,}: {path} has no label, and so {len(lost) - 1:,} more lines; copy the file again"
        )
    return labels, lost


def _keys(file: Path, labels_file: Path, labels: dict[str, int], lost: dict[str, int]) -> tuple[list[str], list[str]]:
    """Return the paths of a key list, and where the lines stand whose lack of a label left some out."""
    keys: dict[str, int] = {}
    left_out: list[str] = []
    unknown: list[tuple[int, str]] = []
    for number, key in lists.lines(file):
        if key in labels:
            if (line := keys.setdefault(key, number)) != number:
                raise InputError(f"{file} line {number:,}: {key} stands in line {line:,} already; keep one line")
        elif key in lost:
            left_out.append(f"{labels_file.name} line {lost[key]:,}: {key}")
        else:
            unknown.append((number, key))
    if unknown:
        number, key = unknown[0]
        more = f", nor have {len(unknown) - 1:,} more lines" if len(unknown) > 1 else ""
        raise InputError(
            f"{file} line {number:,}: {key!r} has no label in {labels_file}{more}; one of the two is cut short or "
            "damaged, copy both again"
        )
    return [*keys], left_out


def _compare_names(folders: tuple[Path, ...]) -> list[str]:
    """Compare the list of class names, where there is one, with ours; return notes on names that we do not know.

    Raises InputError where it has our names in another order: the labels would be other classes.
    """
    file = next((folder / NAMES for folder in folders if (folder / NAMES).is_file()), None)
    if file is None:
        return []
    labels = {_letters(name): label for label, name in enumerate(CLASSES)}
    notes = []
    count = 0
    for count, (number, name) in enumerate(lists.lines(file, ended=False), 1):
        label = labels.get(_letters(name))
        if label is None:
            notes.append(f"{NAMES} line {number:,}: {name!r} is no class name of Clothing1M; its label is kept")
        elif label != count - 1:
            raise InputError(
                f"{file} line {number:,}: {name!r} is class {count - 1} there and {label} in Clothing1M, so the labels "
                "would shift; bring the original lists"
            )
    if count != len(CLASSES):
        notes.append(f"{NAMES} has {count:,} names; Clothing1M has {len(CLASSES)} classes")
    return notes


def _letters(name: str) -> str:
    """Return what spellings agree on: T-shirt, Downcoat."""
    return "".join(filter(str.isalpha, name)).lower()
