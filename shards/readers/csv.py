"""A list of images and labels: `path,label[,clean]` a line, in a .csv or .tsv file."""

import csv
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from shards.errors import InputError
from shards.readers import classes as class_names
from shards.readers import lists
from shards.readers.record import Record, Source, counted, first

COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "image"),
    "label": ("label", "class", "target", "noisy_label"),
    "clean": ("clean", "clean_label"),
}
DELIMITERS = {".csv": ",", ".tsv": "\t"}
UNKNOWN = ("", "-1")  # clean labels that are not known


class Row(NamedTuple):
    """A line of the list; an unknown clean label is ""."""

    line: int
    path: str
    extension: str
    label: str
    clean: str


def read(root: Path | None, split: str | None, list: str | None = None, classes: str | None = None) -> Source:
    """Read the images that a list names; `split` (`train` unless given) is only a name.

    list: a .csv (commas) or .tsv (tabs) file, UTF-8, quoted as csv does, lines `path,label` or `path,label,clean`.
    Paths are relative to ROOT and stay in it. Line 1 is a header where one of its fields is a name of the label's
    column (COLUMNS, any case) and none is an image's name; columns may then stand in any order, and others are passed
    over and said. Labels are class names
    or integers; an empty clean label, or -1, is unknown. classes: a file that names the classes, one a line, so that
    several splits agree; a label is then one of these names, or, where no name is a number, its number counted from 0.
    Without it integers are the classes 0 to the largest, and names are sorted.

    Raises InputError, naming file, line and value, for a damaged line, a last line without its end, a path that is
    empty, no image's or out of ROOT, and a label that is no class.
    """
    root = lists.folder("--root", root, "the images that the list names")
    if list is None:
        raise InputError("csv needs --list FILE, a .csv or .tsv file with lines path,label[,clean]")
    file = Path(list)
    passed_over: dict[str, None] = {}  # names of columns, in order
    rows = [*_rows(file, passed_over)]
    if not rows:
        raise InputError(f"{file}: names no image; write path,label lines")
    places: dict[str, str] = {}
    lines: dict[str, int] = {}
    for row in rows:
        if (line := lines.setdefault(row.path, row.line)) != row.line:
            raise InputError(f"{file} line {row.line:,}: {row.path!r} stands in line {line:,} already; keep one line")
        for text in (row.label, row.clean):
            if text and text not in places:
                places[text] = f"{file} line {row.line:,}"
    names, ids = class_names.resolve(places, Path(classes) if classes is not None else None)
    records = [Record(row.path, row.extension, ids[row.label], ids[row.clean] if row.clean else -1) for row in rows]
    records.sort()
    notes = class_names.without_images(names, [record.label for record in records])
    if passed_over:
        notes += (f"passed over {counted(len(passed_over), 'column')} of {file.name} ({first([*passed_over])})",)
    return Source("csv", split or "train", names, records, root, notes=notes)


def _rows(file: Path, passed_over: dict[str, None]) -> Iterator[Row]:
    delimiter = DELIMITERS.get(file.suffix.lower())
    if delimiter is None:
        raise InputError(f"--list {file}: must end in .csv (commas) or .tsv (tabs)")
    columns: dict[str, int] | None = None
    width = 0
    for line, fields in _fields(file, delimiter):
        if columns is None:
            columns, width = _columns(file, line, fields, passed_over), len(fields)
            if _is_header(fields):
                continue
        if len(fields) != width:
            raise InputError(
                f"{file} line {line:,}: {len(fields)} columns ({delimiter.join(fields)[:80]!r}), "
                f"{width} in the lines before; mend the line"
            )
        path, extension = _image(file, line, fields[columns["path"]])
        label = fields[columns["label"]].strip()
        clean = fields[columns["clean"]].strip() if "clean" in columns else ""
        if not label:
            raise InputError(f"{file} line {line:,}: {path!r} has no label; write one")
        yield Row(line, path, extension, label, "" if clean in UNKNOWN else clean)


def _fields(file: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the fields of each line that is not blank."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(lists.ends(file, text), delimiter=delimiter, strict=True)
            try:
                for fields in reader:
                    if fields:
                        yield reader.line_num, fields
            except csv.Error as error:
                raise InputError(f"{file} line {reader.line_num:,}: damaged ({error}); mend the line") from None
            except UnicodeDecodeError:
                raise InputError(f"{file} line {reader.line_num + 1:,}: not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"--list {file}: cannot be read ({error.strerror})") from None


def _is_header(fields: list[str]) -> bool:
    names = {field.strip().lower() for field in fields}
    return not names.isdisjoint(COLUMNS["label"]) and not any(lists.extension(name) for name in names)


def _columns(file: Path, line: int, fields: list[str], passed_over: dict[str, None]) -> dict[str, int]:
    """Return where path, label and, perhaps, clean stand, by the header or, where there is none, by the order.

    Columns of other names are added to `passed_over`.
    """
    if not _is_header(fields):
        if len(fields) not in (2, 3):
            raise InputError(
                f"{file} line {line:,}: {len(fields)} columns ({', '.join(fields)[:80]!r}); write path,label[,clean], "
                "separated by a comma in .csv and by a tab in .tsv"
            )
        return dict(zip(COLUMNS, range(len(fields)), strict=False))
    columns: dict[str, int] = {}
    for position, field in enumerate(fields):
        column = next((column for column, names in COLUMNS.items() if field.strip().lower() in names), None)
        if column is None:
            passed_over[field.strip()] = None
            continue
        if column in columns:
            known = "; ".join(f"{column}: {', '.join(names)}" for column, names in COLUMNS.items())
            raise InputError(
                f"{file} line {line:,}: column {field!r} is a second one for the {column}; name one each of {known}"
            )
        columns[column] = position
    if "path" not in columns:
        raise InputError(f"{file} line {line:,}: no column of paths; name it one of {', '.join(COLUMNS['path'])}")
    return columns


def _image(file: Path, line: int, path: str) -> tuple[str, str]:
    """Return the path below the root, in one spelling for one file, and jpg, png or webp."""
    if not path.strip():
        raise InputError(f"{file} line {line:,}: the path is empty; name an image")
    if path.startswith("/") or ".." in path.split("/"):
        raise InputError(f"{file} line {line:,}: {path!r} leads out of --root; paths are relative to it")
    extension = lists.extension(path)
    if extension is None or not path.isprintable():
        raise InputError(f"{file} line {line:,}: {path!r} is no name of a .jpg, .jpeg, .png or .webp file")
    return posixpath.normpath(path), extension
