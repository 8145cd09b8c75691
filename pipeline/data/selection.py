"""What of a dataset is trained on and with which labels, decided without touching its shards."""

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.draws import Stream, permutation
from shards.errors import InputError
from shards.manifest import Manifest
from shards.readers.record import first

DROP = "drop"
_PART = re.compile(r"(\d+)/(\d+)")
# Not the run's: runs of several seeds train on the same part.
_SUBSET_SEED = 0


@dataclass(frozen=True, eq=False)
class Selection:
    """Labels int32 [N] by id, and the ids in use, int64 sorted; `active` is None where all are.

    `fingerprint` is None for a dataset as it is, else a digest of both.
    """

    labels: NDArray[np.int32]
    active: NDArray[np.int64] | None
    fingerprint: str | None

    @property
    def num_active(self) -> int:
        """Samples in use."""
        return len(self.labels) if self.active is None else len(self.active)

    @property
    def ids(self) -> NDArray[np.int64]:
        """Ids in use, sorted."""
        return np.arange(len(self.labels)) if self.active is None else self.active

    @property
    def active_labels(self) -> NDArray[np.int32]:
        """Labels of the ids in use, int32 [num_active]."""
        return self.labels if self.active is None else self.labels[self.active]


def select(manifest: Manifest, subset: float | str | None = None, relabel: str | None = None) -> Selection:
    """Lay `data.subset` and `data.relabel` over a dataset.

    subset: a share (0.1), a part ("1/2" and "2/2" share nothing), or a file with an id or a key on each line. Shares
        and parts are drawn from one permutation that no seed changes; smaller shares are in larger ones.
    relabel: a CSV file with the columns `id` or `key`, and `label`: the name of a class, else its number, or `drop`.

    Raises:
        InputError: a file that cannot be read or a line in it that fits nothing; nothing is left.
    """
    labels, used = manifest.labels, np.ones(manifest.num_samples, dtype=bool)
    if subset is not None:
        used[:] = False
        used[_subset(manifest, subset)] = True
    if relabel is not None:
        labels = labels.copy()
        ids, given = _overlay(manifest, Path(relabel))
        labels[ids[given >= 0]] = given[given >= 0]
        used[ids[given < 0]] = False
    if not used.any():
        raise InputError(f"data.subset and data.relabel leave nothing of {manifest.place}: widen one of them")
    active = None if used.all() else np.flatnonzero(used)
    if active is None and np.array_equal(labels, manifest.labels):
        return Selection(manifest.labels, None, None)
    digest = hashlib.sha256(np.packbits(used).tobytes() + labels[used].tobytes())
    return Selection(labels, active, digest.hexdigest())


def _subset(manifest: Manifest, subset: float | str) -> NDArray[np.int64]:
    number = manifest.num_samples
    if isinstance(subset, str) and (part := _PART.fullmatch(subset)):
        index, parts = (int(word) for word in part.groups())
        if not 1 <= index <= parts:
            raise InputError(f"data.subset = '{subset}': write I/N with I from 1 to N, as in '1/2'")
        start, stop = (index - 1) * number // parts, index * number // parts
    elif isinstance(subset, str):
        return _listed(manifest, Path(subset))
    else:
        if not 0 < subset <= 1:
            raise InputError(f"data.subset = {subset}: a share must be above 0 and at most 1")
        start, stop = 0, round(subset * number)
    return permutation(number, _SUBSET_SEED, Stream.SUBSET)[start:stop]


def _listed(manifest: Manifest, path: Path) -> NDArray[np.int64]:
    lines = [line.strip() for line in _lines("data.subset", path)]
    words = [line for line in lines if line]
    by = "id" if all(word.isdecimal() for word in words) else "key"
    return _ids(manifest, words, by, f"data.subset = '{path}'")


def _overlay(manifest: Manifest, path: Path) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Ids and their labels; -1 drops."""
    where = f"data.relabel = '{path}'"
    rows = _rows(where, path)
    header = [name.strip() for name in next(rows, [])]
    by = next((name for name in ("id", "key") if name in header), None)
    if by is None or "label" not in header or len(set(header)) < len(header):
        raise InputError(f"{where}: its first line must name the columns id or key, and label, as in 'key,label'")
    names = {name: number for number, name in enumerate(manifest.classes)}
    words, labels = [], []
    for line, row in enumerate(rows, start=2):
        if not row:
            continue
        if len(row) != len(header):
            raise InputError(f"{where}, line {line}: {len(row)} columns, {len(header)} in the first line")
        words.append(row[header.index(by)].strip())
        labels.append(_label(row[header.index("label")].strip(), names, f"{where}, line {line}"))
    return _ids(manifest, words, by, where), np.array(labels, dtype=np.int32)


def _label(text: str, names: dict[str, int], where: str) -> int:
    if text in names:
        return names[text]
    if text == DROP:
        return -1
    if _number(text, len(names)):
        return int(text)
    raise InputError(f"{where}: '{text[:40]}' is no class, no number below {len(names)}, and not '{DROP}'")


def _ids(manifest: Manifest, words: list[str], by: str, where: str) -> NDArray[np.int64]:
    if by == "id":
        wrong = [word for word in words if not _number(word, manifest.num_samples)]
        found = [] if wrong else [int(word) for word in words]
    else:
        wanted = set(words)
        known = {key: sample for sample, key in enumerate(manifest.keys()) if key in wanted}
        wrong = [word for word in words if word not in known]
        found = [] if wrong else [known[word] for word in words]
    if wrong:
        raise InputError(f"{where}: {len(wrong):,} of its {by}s are not in {manifest.place} ({first(wrong)})")
    if len(set(found)) < len(found):
        twice = [str(word) for word, count in Counter(found if by == "id" else words).items() if count > 1]
        raise InputError(f"{where}: named twice: {first(twice)}; name each {by} once")
    return np.array(found, dtype=np.int64)


def _number(text: str, below: int) -> bool:
    """Whether `text` is a number from 0 to `below`; of any length: int() refuses thousands of digits."""
    return text.isdecimal() and len(text) < 20 and int(text) < below


def _rows(where: str, path: Path) -> Iterator[list[str]]:
    try:
        yield from csv.reader(_lines("data.relabel", path))
    except csv.Error as error:
        raise InputError(f"{where}: not CSV ({error})") from None


def _lines(what: str, path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        hint = "; a share is a number, as in 0.1" if re.match(r"[\d.]+\s*%?$", str(path)) else ""
        raise InputError(f"{what} = '{path}' cannot be read: {reason}{hint}") from None
    if text and not text.endswith("\n"):
        # 12 cut to 1 would be another id, or another label.
        raise InputError(f"{what} = '{path}': its last line has no end, so it may be cut short; add a line end if not")
    return text.splitlines()
