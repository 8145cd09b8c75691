"""One file per raw layout. A new layout is a new file with a function `read`, and its name here."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

from shards.readers.record import Source

NAMES = ("digits", "imagefolder")


def find(name: str) -> Callable[[Path | None, str | None], Source]:
    """Return read(root, split) of the reader `name`, one of NAMES; both are None where not given."""
    module = importlib.import_module(f"shards.readers.{name}")
    return cast(Callable[[Path | None, str | None], Source], module.read)
