"""The places on `alasca index`'s command line, and the tars that they mean."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from shards.errors import InputError
from shards.names import check_shard_name
from shards.readers.foreign import tars
from shards.remotefolder import RemoteFolder
from shards.url import LOCAL, check, is_url, join, redact

MOST = 1_000_000  # tars

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})", re.ASCII)


class Tar(NamedTuple):
    """A tar somewhere: its file name, and the folder it lies in, an absolute path or a URL."""

    folder: str
    name: str

    @property
    def remote(self) -> bool:
        """Whether it has to be fetched."""
        return is_url(self.folder)

    @property
    def where(self) -> str:
        """Its whole address."""
        return join(self.folder, self.name) if self.remote else os.path.join(self.folder, self.name)


def find(places: Sequence[str]) -> list[Tar]:
    """Return the tars that all places mean, in their order; of a folder its *.tar, sorted by name.

    A place is a tar, or a folder of tars, each a path or a URL; ranges in braces, as in `train-{000..146}.tar`, are
    expanded. Only the listing of a folder at a URL asks anybody for anything.

    Raises InputError for a place that is none of these, that holds a secret, or that runs or chains something; for a
    tar that is named twice or whose name a manifest cannot hold; and for more than `MOST` tars.
    """
    found: dict[Tar, None] = {}
    count = sum(_count(place) for place in places)  # before anything is made of them, or asked for
    if count > MOST:
        raise InputError(f"{count:,} tars are more than {MOST:,}; are the braces meant so?")
    for place in places:
        for one in _expanded(place):
            for tar in _at_url(one) if is_url(one) else _at_path(one):
                if tar in found:
                    raise InputError(f"{tar.where}: named twice; index each tar once")
                found[tar] = None
    return list(found)


def labels_of(tars: Sequence[Tar]) -> list[str]:
    """Return a short name for each tar, all different: the file's name, with as much of the path as tells them apart.

    It says nothing of the machine, as long as the names differ: a copy elsewhere is called the same.
    """
    paths = [tar.where.split("/") for tar in tars]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _at_url(url: str) -> Iterable[Tar]:
    scheme = check(url)
    if scheme in LOCAL:
        return _at_path(url.partition("://")[2])
    if redact(url) != url:
        raise InputError(
            f"{redact(url)}: this URL has a user name, a password or a query, which would be written into the manifest;"
            " give it without, and credentials as its file system reads them (for s3:// AWS_ACCESS_KEY_ID and the like)"
        )
    if url.endswith(".tar"):
        return [_tar(*url.rsplit("/", 1))]
    if scheme in ("http", "https"):
        raise InputError(f"{url}: folders cannot be listed over {scheme}; name the tars, as in {url}/{{000..146}}.tar")
    folder = url.rstrip("/")
    files = (name for name, size in RemoteFolder(folder).entries().items() if size is not None)
    return [_tar(folder, name) for name in tars(folder, files)]


def _at_path(place: str) -> Iterable[Tar]:
    path = Path(os.path.abspath(place))
    try:
        if path.is_dir():
            return [_tar(str(path), name) for name in tars(place, os.listdir(path))]
    except OSError as error:
        raise InputError(f"{place}: cannot be read ({error.strerror}); mend this") from None
    if not path.is_file():
        raise InputError(f"{place}: {'no file or folder' if path.exists() else 'no such file'}; give a tar or a folder")
    if path.suffix != ".tar":
        raise InputError(f"{place}: its name does not end in .tar; unpack .tar.gz and the like to .tar first")
    return [_tar(str(path.parent), path.name)]


def _tar(folder: str, name: str) -> Tar:
    try:
        check_shard_name(name)
    except InputError as error:
        raise InputError(f"{folder}: {error}; rename it (letters, digits, '.', '_' and '-')") from None
    return Tar(folder, name)


def _count(place: str) -> int:
    count = 1
    for low, high, _ in _ranges(place):
        count *= high - low + 1
    return count


def _expanded(place: str) -> list[str]:
    """Return what the ranges in braces stand for, the last one counting fastest."""
    texts = [""]
    plain = _BRACES.sub("\0", place).split("\0")
    for before, (low, high, width) in zip(plain, _ranges(place), strict=False):
        texts = [f"{text}{before}{number:0{width}}" for text in texts for number in range(low, high + 1)]
    return [text + plain[-1] for text in texts]


def _ranges(place: str) -> list[tuple[int, int, int]]:
    """Return first number, last number and digits of each range in braces; 0 digits: as many as it takes."""
    found = []
    for text in _BRACES.findall(place):
        match = _RANGE.fullmatch(text)
        low, high = match.groups() if match else ("", "")
        padded = len(low) == len(high)
        if not match or int(low) > int(high) or not (padded or (str(int(low)) == low and str(int(high)) == high)):
            raise InputError(
                f"{redact(place)}: {{{text}}} is no range such as {{000..146}}, from low to high, both with the same"
                " number of digits"
            )
        found.append((int(low), int(high), len(low) if padded else 0))
    return found
