"""What a dataset folder says of its samples beside what only writing them tells: offsets, sizes, digests."""

import hashlib
import io
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shards.destination import Destination
from shards.errors import InputError
from shards.localfolder import BUILD_FOLDER
from shards.manifest import canonical
from shards.table import SAMPLE_DTYPE

_HEAD, _TABLE, _KEYS = (f"{BUILD_FOLDER}/outline.{name}" for name in ("json", "npy", "keys"))


def shard_name(index: int) -> str:
    """Return the file name of shard `index`; names sort as their numbers do."""
    return f"shard-{index:06d}.tar"


@dataclass(frozen=True, eq=False)
class Outline:
    """A dataset to be, the same in all parts of its build.

    settings: what was asked. counts: of images, and of those passed over and missing. table: SAMPLE_DTYPE [N] by id,
    with `key`, `label` and `clean_label` only. keys: the blob that `key` points into.
    """

    settings: dict[str, Any]
    counts: dict[str, int]
    noise: dict[str, Any] | None
    table: NDArray[Any]
    keys: bytes

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all of it, in hex: shards of two builds with one fingerprint belong together."""
        digest = hashlib.sha256(canonical([self.settings, self.counts, self.noise]))
        for part in (self.table.data, self.keys):
            digest.update(hashlib.sha256(part).digest())
        return digest.hexdigest()

    @property
    def num_shards(self) -> int:
        """Number of shards; the last may be smaller."""
        return math.ceil(len(self.table) / self.settings["samples_per_shard"])

    def ids(self, index: int) -> range:
        """Return the ids in shard `index`."""
        step: int = self.settings["samples_per_shard"]
        return range(index * step, min((index + 1) * step, len(self.table)))

    def save(self, destination: Destination) -> None:
        """Write it into the build folder, the head last; parts of one build write the same bytes."""
        table = io.BytesIO()
        np.save(table, self.table, allow_pickle=False)
        destination.write(_TABLE, table.getvalue())
        destination.write(_KEYS, self.keys)
        head = {"settings": self.settings, "counts": self.counts, "noise": self.noise, "outline": self.fingerprint}
        destination.write(_HEAD, json.dumps(head).encode())

    @classmethod
    def load(cls, destination: Destination) -> Self | None:
        """Return what `save` wrote; None where it did not. Raises InputError where that is damaged."""
        head, table, keys = destination.read([_HEAD, _TABLE, _KEYS])
        if head is None:
            return None
        try:
            found = json.loads(head)
            rows = np.load(io.BytesIO(table or b""), allow_pickle=False)
            outline = cls(found["settings"], found["counts"], found["noise"], rows, keys or b"")
            if rows.dtype == SAMPLE_DTYPE and rows.ndim == 1 and outline.fingerprint == found["outline"]:
                return outline
        except (ValueError, KeyError, TypeError, EOFError, RecursionError):
            pass
        raise InputError(f"{destination.name}: what its parts left in {BUILD_FOLDER} is damaged; run one of them again")
