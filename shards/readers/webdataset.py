"""ROOT/*.tar that somebody else wrote for webdataset, to be checked, shuffled and given a manifest."""

import os
from pathlib import Path

from shards.errors import InputError
from shards.readers import classes as class_names
from shards.readers import lists
from shards.readers.foreign import Fields, samples, tars
from shards.readers.record import Record, Slice, Source, first


def read(
    root: Path | None,
    split: str | None,
    label_field: str | None = None,
    clean_field: str | None = None,
    classes: str | None = None,
) -> Source:
    """Read the samples of all tars in a folder: ROOT/split where the split is named and that is a folder, else ROOT.

    As in webdataset, members whose names agree up to the first dot of the file's name are one sample; each needs one
    image (.jpg, .jpeg, .png or .webp) and a label: the text in .cls, or what .json has in `label_field`. `clean_field`
    names the true label in .json; missing or null there is unknown. Labels and `classes` are as for the reader csv. The
    images stay where they are until the shards are written, so memory holds none. Keys are `TAR/member`.

    Raises InputError, naming tar and sample, for a damaged tar, a member that is no plain file, a sample without image
    or label or with two of one kind, and a label that is no class.
    """
    root = lists.folder("--root", root, "the .tar files")
    if split and (root / split).is_dir():
        root = root / split
    try:
        names = tars(f"--root {root}", os.listdir(root))
    except OSError as error:
        raise InputError(f"--root {root}: cannot be read ({error.strerror}); mend this") from None
    fields = Fields(label_field, clean_field)
    found: list[tuple[str, str, Slice, str, str]] = []
    passed_over: list[str] = []
    places: dict[str, str] = {}
    for name in names:
        others: list[str] = []
        for sample in samples(root / name, str(root / name), fields, others):
            key = f"{name}/{sample.image.name}"
            for text in filter(None, (sample.label, sample.clean)):
                places.setdefault(text, f"{root}/{key}")
            image = Slice(name, sample.image.offset, sample.image.size)
            found.append((key, sample.extension, image, sample.label, sample.clean))
        passed_over += (f"{name}/{other}" for other in others)
    if not found:
        raise InputError(f"--root {root}: no sample in its {len(names):,} tars; is this the right folder?")
    if clean_field is not None and not any(clean for *_, clean in found):
        raise InputError(f"--clean-field {clean_field}: no .json of {root} has it; name a field that is there")
    known, ids = class_names.resolve(places, Path(classes) if classes is not None else None)
    records = [
        Record(key, extension, ids[label], ids[clean] if clean else -1, image)
        for key, extension, image, label, clean in found
    ]
    records.sort()
    notes = class_names.without_images(known, [record.label for record in records])
    if passed_over:
        notes += (f"passed over {len(passed_over):,} files that belong to no sample ({first(passed_over)})",)
    return Source("webdataset", split or "train", known, records, root, fields.options(), len(passed_over), notes)
