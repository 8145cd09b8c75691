"""ROOT/*.tar that somebody else wrote for webdataset, to be checked, shuffled and given a manifest."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from shards.errors import InputError
from shards.readers import classes as class_names
from shards.readers import lists
from shards.readers.imagefolder import SPLIT_NAMES
from shards.readers.members import members
from shards.readers.record import EXTENSIONS, Record, Slice, Source, first
from shards.tar import Member

LARGEST = 1 << 24  # bytes of a .cls or .json: far more than any real one


class Sample(NamedTuple):
    """One sample of a tar; an unknown clean label is ""."""

    key: str
    extension: str
    image: Slice
    label: str
    clean: str


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
        names = sorted(name for name in os.listdir(root) if name.endswith(".tar") and not name.startswith("."))
    except OSError as error:
        raise InputError(f"--root {root}: cannot be read ({error.strerror}); mend this") from None
    if not names:
        raise InputError(f"--root {root}: no .tar file in it; unpack .tar.gz and the like to .tar first")
    splits = sorted(SPLIT_NAMES.intersection(re.split("[^a-z]+", " ".join(names).lower())))
    if len(splits) > 1:
        raise InputError(
            f"--root {root}: its tars are of several splits ({', '.join(splits)}); give each split a folder of its own"
        )
    samples: list[Sample] = []
    passed_over: list[str] = []
    places: dict[str, str] = {}
    for name in names:
        for sample in _samples(root, name, label_field, clean_field, passed_over):
            for text in filter(None, (sample.label, sample.clean)):
                if text not in places:
                    places[text] = f"{root}/{sample.key}"
            samples.append(sample)
    if not samples:
        raise InputError(f"--root {root}: no sample in its {len(names):,} tars; is this the right folder?")
    if clean_field is not None and not any(sample.clean for sample in samples):
        raise InputError(f"--clean-field {clean_field}: no .json of {root} has it; name a field that is there")
    known, ids = class_names.resolve(places, Path(classes) if classes is not None else None)
    records = [
        Record(key, extension, ids[label], ids[clean] if clean else -1, image)
        for key, extension, image, label, clean in samples
    ]
    records.sort()
    notes = class_names.without_images(known, records)
    if passed_over:
        notes += (f"passed over {len(passed_over):,} files that belong to no sample ({first(passed_over)})",)
    options = {"label_field": label_field, "clean_field": clean_field}
    return Source("webdataset", split or "train", known, records, root, options, len(passed_over), notes)


def _samples(
    root: Path, tar: str, label_field: str | None, clean_field: str | None, passed_over: list[str]
) -> list[Sample]:
    groups: dict[str, dict[str, Member]] = {}
    for member in members(root / tar):
        folder, slash, base = member.name.rpartition("/")
        stem, dot, extension = base.partition(".")
        if not stem or not dot:
            passed_over.append(f"{tar}/{member.name}")
            continue
        parts = groups.setdefault(folder + slash + stem, {})
        if parts.setdefault(extension.lower(), member) is not member:
            raise InputError(f"{root / tar}: {member.name!r} is there twice; write the tar with one of each")
    found = []
    texts: dict[str, str] = {}  # one object for equal labels: there are few labels and many samples
    with open(root / tar, "rb") as file:
        for key, parts in groups.items():
            where = f"{root / tar}: sample {key!r}"
            images = [parts[extension] for extension in parts if f".{extension}" in EXTENSIONS]
            if len(images) != 1:
                problem = "no image" if not images else f"{len(images)} images"
                raise InputError(
                    f"{where} has {problem} ({', '.join('.' + extension for extension in parts)}); one .jpg, .jpeg, "
                    ".png or .webp is needed"
                )
            fields = {}
            if label_field is not None or clean_field is not None:
                fields = _fields(where, file, parts)
            if label_field is None:
                label = _cls(where, file, parts)
            else:
                label = _text(where, label_field, fields)
                if not label:
                    raise InputError(f"{where}: its .json has no label in {label_field!r}; name another --label-field")
            clean = _text(where, clean_field, fields) if clean_field is not None else ""
            image = images[0]
            found.append(
                Sample(
                    f"{tar}/{image.name}",
                    EXTENSIONS[os.path.splitext(image.name)[1].lower()],
                    Slice(tar, image.offset, image.size),
                    texts.setdefault(label, label),
                    "" if clean == "-1" else texts.setdefault(clean, clean),
                )
            )
    return found


def _payload(where: str, file: IO[bytes], parts: Mapping[str, Member], extension: str, others: str) -> bytes:
    member = parts.get(extension)
    if member is None:
        there: Sequence[str] = [f".{name}" for name in parts]
        raise InputError(f"{where} has no .{extension} ({', '.join(there)}); {others}")
    if member.size > LARGEST:
        raise InputError(f"{where}: its .{extension} has {member.size:,} bytes, too many for a label")
    file.seek(member.offset)
    return file.read(member.size)


def _cls(where: str, file: IO[bytes], parts: Mapping[str, Member]) -> str:
    data = _payload(where, file, parts, "cls", "a label is needed, or --label-field NAME where .json holds it")
    try:
        text = data.decode().strip()
    except UnicodeDecodeError:
        text = ""
    if not text or not text.isprintable():
        raise InputError(f"{where}: its .cls holds {data[:40]!r}, not one label")
    return text


def _fields(where: str, file: IO[bytes], parts: Mapping[str, Member]) -> dict[str, Any]:
    data = _payload(where, file, parts, "json", "--label-field and --clean-field read from there")
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: its .json is damaged ({type(error).__name__}: {error})") from None
    if not isinstance(fields, dict):
        raise InputError(f"{where}: its .json is no object with fields")
    return fields


def _text(where: str, name: str, fields: Mapping[str, Any]) -> str:
    """Return the label in a field, "" where it is missing or null."""
    value = fields.get(name)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise InputError(f"{where}: {name!r} in its .json is {value!r:.40}; a label is an integer or a name")
    return str(value).strip()
