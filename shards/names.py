"""Names of shards and classes that cannot lead out of a folder."""

import re
from collections.abc import Sequence

from shards.errors import InputError

_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.tar")


def check_shard_name(name: object) -> None:
    """Raise InputError unless `name` is a plain file name ending in .tar, which cannot leave the folder."""
    if not (isinstance(name, str) and _SHARD_NAME.fullmatch(name)):
        raise InputError(f"shard name {name!r} is not a plain file name ending in .tar")


def check_classes(classes: Sequence[object]) -> None:
    """Raise InputError unless the class names are distinct, printable, and no paths out of a folder."""
    for name in classes:
        if not (isinstance(name, str) and name and name.isprintable()):
            raise InputError(f"class name {name!r} is not a line of printable text")
        if name.startswith("/") or {".", ".."} & set(re.split(r"[/\\]", name)):
            raise InputError(f"class name {name!r} is a path out of the folder")
    if not classes or len(set(classes)) != len(classes):
        raise InputError("there are no classes, or two have one name")
