"""Food-101N: dishes found by their names on the web, some labels checked by people; its test set is Food-101's."""

from collections.abc import Iterator
from pathlib import Path

from shards.errors import InputError
from shards.readers import lists
from shards.readers.record import Record, Source

CHECKED = {"verified_train": "meta/verified_train.tsv", "verified_val": "meta/verified_val.tsv"}
IMAGES, CLASSES, TEST = "meta/imagelist.tsv", "meta/classes.txt", "meta/test.txt"
SPLITS = ("train", *CHECKED, "test")
LAYOUT = (
    f"Food-101N has {CLASSES}, {IMAGES}, {', '.join(CHECKED.values())} and images/CLASS/, "
    f"Food-101 {CLASSES}, {TEST} and images/CLASS/"
)
KNOWN_CLASSES = 101
KNOWN = {"train": 310_009, "verified_train": 52_868, "verified_val": 4_741, "test": 25_250}


def read(root: Path | None, split: str | None) -> Source:
    """Read train (the default), verified_train or verified_val of Food-101N, or test of Food-101, each in its own ROOT.

    train are all images of meta/imagelist.tsv, the verified splits those of their list alone. The label is the folder
    of the image; it is the clean label too where a verified list says 1, else that is unknown. Food-101N's lists begin
    with a header line, Food-101's do not; the class lists come out equal. The labels of test are taken as clean.

    Sources: Lee et al., CleanNet, CVPR 2018, and the dataset's page for the counts (Food-101N); Bossard et al.,
    Food-101, ECCV 2014. Raises InputError for a list that is missing or damaged, a list without its header, and an
    image of no class.
    """
    split = split or "train"
    if split not in SPLITS:
        raise InputError(f"--split {split}: Food-101N has the splits {', '.join(SPLITS)}; test is Food-101's")
    root = lists.folder("--root", root, "meta and images of Food-101N, or of Food-101 for --split test")
    if (root / TEST).is_file() != (split == "test"):
        problem = f"no {TEST}, as Food-101 has" if split == "test" else f"{TEST} shows that this is Food-101"
        other = "Food-101" if split == "test" else "Food-101N"
        raise InputError(f"--root {root}: {problem}; --split {split} needs the folder of {other}")
    names = _classes(root, header=split != "test")
    labels = {name: label for label, name in enumerate(names)}
    if split == "test":
        keys = [f"{key}.jpg" for key, _ in _keys(root, TEST, labels, columns=1, suffix=".jpg")]
        clean = set(keys)
    else:
        checked = {name: _verdicts(root, file, labels) for name, file in CHECKED.items()}
        clean = {key for verdicts in checked.values() for key, verdict in verdicts.items() if verdict == "1"}
        keys = list(checked[split]) if split in CHECKED else [k for k, _ in _keys(root, IMAGES, labels, columns=1)]
    notes = []
    if len(keys) != KNOWN[split]:
        dataset = "Food-101" if split == "test" else "Food-101N"
        notes.append(f"{len(keys):,} images; {dataset} has {KNOWN[split]:,} in {split}")
    if len(names) != KNOWN_CLASSES:
        notes.append(f"{CLASSES} has {len(names):,} classes; Food-101N has {KNOWN_CLASSES}")
    records = []
    for key in keys:
        label, extension = labels[key.split("/")[0]], lists.extension(key)
        assert extension is not None, "the line was read strictly"
        records.append(Record(f"images/{key}", extension, label, label if key in clean else -1))
    records.sort()
    return Source("food101n", split, names, records, root, notes=tuple(notes))


def _file(root: Path, name: str) -> Path:
    if not (root / name).is_file():
        raise InputError(f"--root {root}: {name} is missing; {LAYOUT}")
    return root / name


def _classes(root: Path, header: bool) -> tuple[str, ...]:
    """Return the class names in the order of the list, which is the order of the labels."""
    file = _file(root, CLASSES)
    names = [name for _, name in lists.lines(file, ended=header)]
    if header and names:
        # The header is known by what it is not: a missing one would shift every label by one.
        if (root / "images" / names[0]).is_dir():
            raise InputError(f"{file} line 1: {names[0]!r} is a class, but Food-101N's lists begin with a header line")
        names = names[1:]
    if not names or len(set(names)) != len(names):
        raise InputError(f"{file}: {'a class stands twice' if names else 'no classes'}; fetch it again")
    return tuple(names)


def _verdicts(root: Path, name: str, labels: dict[str, int]) -> dict[str, str]:
    """Return image -> "1" where people found its label right, else "0"."""
    verdicts: dict[str, str] = {}
    for key, verdict in _keys(root, name, labels, columns=2):
        if verdicts.setdefault(key, verdict) != verdict:
            raise InputError(f"{root / name}: {key} is verified both 1 and 0; keep one line")
    return verdicts


def _keys(root: Path, name: str, labels: dict[str, int], columns: int, suffix: str = "") -> Iterator[tuple[str, str]]:
    """Yield `class/image` and what follows it on each line. A list of Food-101N (no suffix) has a header."""
    file = _file(root, name)
    for number, line in lists.lines(file, ended=not suffix):  # Food-101's lists of mere names end without a line end
        key, *rest = line.split("\t")
        folder, slash, image = (key + suffix).partition("/")
        is_image = slash and "/" not in image and image != suffix and lists.extension(image) is not None
        if number == 1 and not suffix:
            if is_image and folder in labels:
                raise InputError(f"{file} line 1: {key!r} is an image, but Food-101N's lists begin with a header line")
            continue
        where = f"{file} line {number:,}"
        if folder not in labels:
            raise InputError(f"{where}: {key!r} is in no class folder of {CLASSES}; fetch the list again")
        if not is_image or len(rest) != columns - 1:
            raise InputError(
                f"{where}: {line!r:.90} is not {'CLASS/IMAGE<tab>0 or 1' if columns > 1 else 'CLASS/IMAGE'}"
            )
        if rest and rest[0] not in ("0", "1"):
            raise InputError(f"{where}: {key} has the verdict {rest[0]!r}, neither 0 nor 1; fetch the list again")
        yield key, rest[0] if rest else ""
