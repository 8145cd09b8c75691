"""Text lists of images, `path label` a line. Read strictly: a list cut short or damaged loses images without a word."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from shards.errors import InputError
from shards.readers.record import EXTENSIONS


def folder(option: str, path: Path | None, holds: str) -> Path:
    """Return `path`, given as `option`; raises InputError unless it is a folder. `holds`: what it should hold."""
    if path is None:
        raise InputError(f"{option} FOLDER is needed, the folder that holds {holds}")
    if not path.is_dir():
        problem = "not a folder" if path.exists() else "no such folder"
        raise InputError(f"{option} {path}: {problem}; give the folder that holds {holds}")
    return path


def find(name: str, folders: Sequence[Path]) -> Path:
    """Return the list `name` in the first folder that has it; raises InputError, naming the folders, where none has."""
    for place in folders:
        if (place / name).is_file():
            return place / name
    raise InputError(f"{name} is missing, looked in {', '.join(map(str, folders))}; bring it, or give the right folder")


def lines(file: Path, ended: bool = True) -> Iterator[tuple[int, str]]:
    """Yield the number (from 1) and the text of each line that is not blank, without the space around it.

    UTF-8, with or without a byte-order mark; Unix or Windows line ends. ended: the last line must have its end, as
    what is left of a line that was cut may be another label. Raises InputError where it has none, where the file cannot
    be read, and where a line is no printable text.
    """
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape") as text:
            for number, line in enumerate(ends(file, text) if ended else text, 1):
                line = line.strip()
                if not line.isprintable() and not line.replace("\t", " ").isprintable():
                    raise InputError(f"{file} line {number:,}: {line[:80]!a} is no printable text; copy the file again")
                if line:
                    yield number, line
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); mend this") from None


def ends(file: Path, text: Iterable[str]) -> Iterator[str]:
    """Yield the lines of the text in `file`; raises InputError where the last one has no line end."""
    for number, line in enumerate(text, 1):
        if line.strip() and not line.endswith(("\n", "\r")):
            raise InputError(
                f"{file} line {number:,}: {line[:80]!r} has no line end, so the list was cut short; copy it again, or, "
                "if it is whole, end the line"
            )
        yield line


def entries(file: Path, classes: int) -> Iterator[tuple[int, str, int | None]]:
    """Yield the line number, the path and the label of each line `path label`; no label: None.

    Paths are relative, with forward slashes and without space, and end as an image's name does; labels are
    0 .. classes - 1. Raises InputError, naming the line, for any other line.
    """
    known = {str(label): label for label in range(classes)}
    for number, line in lines(file):
        path, *rest = line.split()
        if extension(path) is None:
            raise InputError(f"{file} line {number:,}: {path!r} is no name of an image; is the line cut short?")
        if path[0] == "/" or (".." in path and ".." in path.split("/")):
            raise InputError(f"{file} line {number:,}: {path!r} leads out of the folder; paths are relative to it")
        if len(rest) > 1:
            raise InputError(f"{file} line {number:,}: {line!r} is not `path label`; mend the line")
        label = known.get(rest[0]) if rest else None
        if rest and label is None:
            raise InputError(
                f"{file} line {number:,}: label {rest[0]!r:.40} is none of 0 to {classes - 1}; mend the line"
            )
        yield number, path, label


def extension(path: str) -> str | None:
    """Return jpg, png or webp, by how `path` ends (any case); None: no image that shards can hold."""
    return EXTENSIONS.get(path[path.rfind(".") :].lower())
