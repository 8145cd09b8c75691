"""One file per raw layout. A new layout is a new file with a function `read`, and its line here."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from shards.readers.record import Source


@dataclass(frozen=True)
class Option:
    """A choice that one layout alone needs: `--name VALUE`, and the keyword `name` of its `read`."""

    name: str
    help: str
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    default: str | None = None


@dataclass(frozen=True)
class Layout:
    """What `--help` says of a reader, and its own options."""

    help: str
    options: tuple[Option, ...] = ()


LAYOUTS = {
    "digits": Layout("scikit-learn's handwritten digits, which need no download; splits train and test"),
    "imagefolder": Layout("ROOT/CLASS/images or ROOT/SPLIT/CLASS/images: the folder names are the classes"),
}


def find(name: str) -> Callable[..., Source]:
    """Return read(root, split, **options) of the reader `name`, one of LAYOUTS.

    `root` (Path) and `split` (str) are None where not given; options are those of its line, as keywords.
    """
    read: Callable[..., Source] = importlib.import_module(f"shards.readers.{name}").read
    return read
