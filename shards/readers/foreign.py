"""A tar that somebody else wrote for webdataset: its samples, whatever is done with them."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from shards.errors import InputError
from shards.readers.imagefolder import SPLIT_NAMES
from shards.readers.members import members
from shards.readers.record import EXTENSIONS
from shards.tar import Member

LARGEST = 1 << 24  # bytes of a .cls or .json: far more than any real one


class Fields(NamedTuple):
    """Where the labels are: fields of .json, None for the given label in .cls and for no true label."""

    label: str | None = None
    clean: str | None = None

    def options(self) -> dict[str, str | None]:
        """Return them as a manifest records them."""
        return {"label_field": self.label, "clean_field": self.clean}


class Sample(NamedTuple):
    """One sample of a tar; `image` is the member. An unknown clean label is ""."""

    image: Member
    extension: str
    label: str
    clean: str


def tars(where: str, names: Iterable[str]) -> list[str]:
    """Return the tars among the names of a folder's files, sorted.

    Raises InputError, beginning with `where`, where there are none, or they are of several splits.
    """
    found = sorted(name for name in names if name.endswith(".tar") and not name.startswith("."))
    if not found:
        raise InputError(f"{where}: no .tar file in it; unpack .tar.gz and the like to .tar first")
    splits = sorted(SPLIT_NAMES.intersection(re.split("[^a-z]+", " ".join(found).lower())))
    if len(splits) > 1:
        raise InputError(
            f"{where}: its tars are of several splits ({', '.join(splits)}); give each split a folder of its own"
        )
    return found


def samples(path: Path, where: str, fields: Fields, passed_over: list[str]) -> list[Sample]:
    """Return the samples of the tar at `path`, which messages call `where`, in the order of their first members.

    As in webdataset, members whose names agree up to the first dot of the file's name are one sample; each needs one
    image and a label. Names of members that belong to no sample are added to `passed_over`.

    Raises InputError, naming tar and sample, for a damaged tar, a member that is no plain file, a sample without image
    or label or with two of one kind.
    """
    groups: dict[str, dict[str, Member]] = {}
    for member in members(path, where):
        folder, slash, base = member.name.rpartition("/")
        stem, dot, extension = base.partition(".")
        if not stem or not dot:
            passed_over.append(member.name)
            continue
        parts = groups.setdefault(folder + slash + stem, {})
        if parts.setdefault(extension.lower(), member) is not member:
            raise InputError(f"{where}: {member.name!r} is there twice; write the tar with one of each")
    texts: dict[str, str] = {}  # one object for equal labels: there are few labels and many samples
    with open(path, "rb") as file:
        return [_sample(f"{where}: sample {key!r}", file, parts, fields, texts) for key, parts in groups.items()]


def _sample(where: str, file: IO[bytes], parts: Mapping[str, Member], fields: Fields, texts: dict[str, str]) -> Sample:
    images = [parts[extension] for extension in parts if f".{extension}" in EXTENSIONS]
    if len(images) != 1:
        problem = "no image" if not images else f"{len(images)} images"
        raise InputError(
            f"{where} has {problem} ({', '.join('.' + extension for extension in parts)}); one .jpg, .jpeg, "
            ".png or .webp is needed"
        )
    document = {} if fields == Fields() else _document(where, file, parts)
    if fields.label is None:
        label = _cls(where, file, parts)
    else:
        label = _text(where, fields.label, document)
        if not label:
            raise InputError(f"{where}: its .json has no label in {fields.label!r}; name another --label-field")
    clean = _text(where, fields.clean, document) if fields.clean is not None else ""
    extension = EXTENSIONS[os.path.splitext(images[0].name)[1].lower()]
    clean = "" if clean == "-1" else texts.setdefault(clean, clean)
    return Sample(images[0], extension, texts.setdefault(label, label), clean)


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


def _document(where: str, file: IO[bytes], parts: Mapping[str, Member]) -> dict[str, Any]:
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
