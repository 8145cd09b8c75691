"""ANIMAL-10N: ten animals, five pairs of which people confuse; about 8 % of the labels are wrong."""

import os
from pathlib import Path

from shards.errors import InputError
from shards.readers import lists
from shards.readers.record import Record, Source, counted, first

# fmt: off
CLASSES = (
    "cat", "lynx", "wolf", "coyote", "cheetah", "jaguar", "chimpanzee", "orangutan", "hamster", "guinea pig",
)
# fmt: on
FOLDERS = {"train": "training", "test": "testing"}
KNOWN = {"train": 50_000, "test": 5_000}


def read(root: Path | None, split: str | None) -> Source:
    """Read train (the default), from ROOT/training, or test, from ROOT/testing.

    The label is what stands before the first underscore of a file's name; clean labels are unknown in train, and the
    given ones in test.

    Source: Song, Kim, Lee, SELFIE: Refurbishing Unclean Samples for Robust Deep Learning, ICML 2019. Raises InputError
    for a folder that is missing or empty, and for an image whose name gives no label.
    """
    split = split or "train"
    if split not in FOLDERS:
        raise InputError(f"--split {split}: ANIMAL-10N has the splits {' and '.join(FOLDERS)}")
    root = lists.folder("--root", root, "ANIMAL-10N's folders training and testing")
    folder = FOLDERS[split]
    try:
        names = sorted(name for name in os.listdir(root / folder) if not name.startswith("."))
    except OSError as error:
        raise InputError(
            f"--root {root}: cannot read its folder {folder} ({error.strerror}); ANIMAL-10N has "
            "training/ and testing/ with files LABEL_NUMBER.jpg"
        ) from None
    known = {str(label): label for label in range(len(CLASSES))}
    records: list[Record] = []
    passed_over: list[str] = []
    for name in names:
        extension = lists.extension(name)
        if extension is None:
            passed_over.append(f"{folder}/{name}")
            continue
        label = known.get(name.partition("_")[0])
        if label is None:
            raise InputError(
                f"{root}/{folder}/{name}: the name does not begin with a label, 0_ to 9_; mend or remove it"
            )
        records.append(Record(f"{folder}/{name}", extension, label, label if split == "test" else -1))
    if not records:
        raise InputError(f"--root {root}: no image in its folder {folder}; bring the files LABEL_NUMBER.jpg")
    notes = []
    if passed_over:
        notes.append(f"passed over {counted(len(passed_over), 'file')} other than images ({first(passed_over)})")
    if len(records) != KNOWN[split]:
        notes.append(f"{len(records):,} images; ANIMAL-10N has {KNOWN[split]:,} in {split}")
    return Source("animal10n", split, CLASSES, records, root, passed_over=len(passed_over), notes=tuple(notes))
