"""One shard of a dataset, and where it lies: beside the manifest, or wherever those who wrote it left it."""

import os
import posixpath
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.cache import Cache
from shards.errors import InputError
from shards.names import check_shard_name
from shards.store import Store, open_plain
from shards.url import LOCAL, ascend, check, is_url, redact

Folder = Path | Store  # of shards: what is opened as it lies, or fetched through a cache

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class File:
    """Length in bytes and SHA-256 (hex) of a file that a manifest names."""

    bytes: int
    sha256: str

    def check(self) -> None:
        """Raise InputError unless the fields are such as a manifest may hold."""
        if not (isinstance(self.bytes, int) and self.bytes >= 0 and _DIGEST.fullmatch(self.sha256)):
            raise InputError(f"{self} has a bad length or digest")


@dataclass(frozen=True)
class Shard:
    """One tar file: its name, number of samples, length in bytes and SHA-256 in hex.

    `place` is the folder or URL in which it lies, relative to the manifest's where that is possible; "" is the
    manifest's own folder, where all shards of our own builds lie.
    """

    name: str
    samples: int
    bytes: int
    sha256: str
    place: str = ""

    @property
    def file(self) -> str:
        """Place and name, for messages."""
        return posixpath.join(self.place, self.name)

    def check(self) -> None:
        """Raise InputError unless the fields are such as a manifest may hold."""
        check_shard_name(self.name)
        File(self.bytes, self.sha256).check()
        if not (isinstance(self.samples, int) and self.samples > 0):
            raise InputError(f"{self} has a bad number of samples")
        if not (isinstance(self.place, str) and self.place.isprintable()):
            raise InputError(f"{self} has a bad place")

    def document(self) -> dict[str, Any]:
        """Return what the manifest says of it; of its own folder it says nothing."""
        fields = asdict(self)
        return fields if self.place else {name: value for name, value in fields.items() if name != "place"}

    def path(self, folder: Folder) -> Path:
        """Return where it lies, fetched if need be; `folder` is that of its place."""
        if isinstance(folder, Store):
            return folder.local(self.name, self.bytes, self.sha256)
        return folder / self.name

    def open(self, folder: Folder, release: Callable[[], bool] | None = None) -> int:
        """Return a descriptor, fetched if need be; `release` is as for `Store.open`, and so are the errors."""
        if isinstance(folder, Store):
            return folder.open(self.name, self.bytes, self.sha256, release=release)
        return open_plain(folder / self.name, self.bytes)


def folder_of(place: str, home: Folder, cache: Cache) -> Folder:
    """Return the folder that a shard's place means in a manifest that lies in `home`.

    Raises InputError for a URL that is not read or holds a secret, and for a place that leads out of the host or bucket
    of a manifest that came from there: nobody elsewhere names files of this machine.
    """
    if is_url(place):
        if check(place) in LOCAL or redact(place) != place:
            raise InputError(f"the place {redact(place)} of a shard is no URL that a manifest may hold")
        return Store(place, cache)
    if isinstance(home, Path):
        return home / place
    if not place:
        return home
    if check(home.url) in LOCAL:  # as it would be without the cache, through links and all
        return Store("file://" + os.path.realpath(os.path.join(home.url.partition("://")[2], place)), cache)
    return Store(ascend(home.url, place), cache)
