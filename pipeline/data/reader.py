"""Sample id -> the image's bytes, read at its place in the shard, where the tar itself must agree on whose they are."""

import os
import resource
import time
from collections import OrderedDict
from typing import Any

from shards.cache import NEVER, mark
from shards.errors import OwnError
from shards.manifest import INDEX, SAMPLES, Manifest
from shards.tar import BLOCK, LEAD, heads, precedes

# A rank reads from (its lanes x data.shuffle_shards) shards at once. Half of what the system allows a process.
_OPEN_SHARDS = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


class ShardReader:
    """Reads image bytes by (shard, offset, size); keeps the last shards open. In another process it opens its own."""

    def __init__(self, manifest: Manifest, at_once: int = _OPEN_SHARDS, once: bool = False) -> None:
        """Read `manifest`.

        Args:
            manifest: the dataset.
            at_once: how many shards the samples asked for in any short time lie in; of a cache, no more are kept open:
                it cannot remove a shard that is.
            once: a shard that was read is not needed for long; a cache may remove it before those of a training set.
        """
        self._manifest, self._once = manifest, once
        # In tars that somebody else wrote, names say nothing about the order: only the length is looked at.
        self._named = manifest.source.get("reader") != INDEX
        self._most = max(1, min(at_once, _OPEN_SHARDS)) if manifest.fetches else _OPEN_SHARDS
        self._descriptors: OrderedDict[int, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_descriptors": OrderedDict()}

    def image_bytes(self, sample_id: int) -> bytes:
        """Bytes of one image, as they were sharded.

        Raises:
            OwnError: the shard is missing, not as long as the manifest says, or cannot be fetched or read; or another
                sample, or one of another label, lies there.
        """
        row = self._manifest.table[sample_id]
        shard, size, start = int(row["shard"]), int(row["size"]), int(row["offset"])
        lead = LEAD if self._named else BLOCK
        if shard >= len(self._manifest.shards) or not lead <= start <= self._manifest.shards[shard].bytes - size:
            raise self._damaged(None, f"leads sample {sample_id:,} out of its shard")
        try:
            data = os.pread(self._open(shard), lead + size, start - lead)
        except OSError as error:
            raise self._damaged(shard, f"cannot be read ({error.strerror})") from None
        if len(data) != lead + size:
            raise self._damaged(shard, "was cut short while it was in use")
        head = data[:lead]
        if not (precedes(head, sample_id, size, int(row["label"])) if self._named else heads(head, size)):
            problem = f"does not hold sample {sample_id:,} as {SAMPLES} says: damaged, or another file"
            raise self._damaged(shard, problem)
        return data[lead:]

    def _damaged(self, shard: int | None, problem: str) -> OwnError:
        """What to raise of a shard, or of the table (None)."""
        store = self._manifest.store if shard is None else self._manifest.store_of(shard)
        file = SAMPLES if shard is None else self._manifest.shards[shard].file
        mend = "see `alasca verify`, and copy the folder again"
        if store is not None:
            mend = f"remove {store.folder}, and it will be fetched again"
        return OwnError(f"{self._manifest.place}/{file} {problem}; {mend}")

    def _open(self, shard: int) -> int:
        if shard in self._descriptors:
            self._descriptors.move_to_end(shard)
            return self._descriptors[shard]
        if len(self._descriptors) >= self._most:
            self._close_oldest()
        self._descriptors[shard] = self._manifest.open_shard(shard, self._close_oldest)
        return self._descriptors[shard]

    def _close_oldest(self) -> bool:
        """Close the shard that was read longest ago; whether there was one."""
        if not self._descriptors:
            return False
        shard, descriptor = self._descriptors.popitem(last=False)
        os.close(descriptor)
        store = self._manifest.store_of(shard)
        if self._once and store is not None:
            mark(
                store.path(self._manifest.shards[shard].name, self._manifest.shards[shard].sha256), time.time() + NEVER
            )
        return True

    def close(self) -> None:
        """Close every shard."""
        while self._close_oldest():
            pass

    def __del__(self) -> None:
        """Close them with the reader: evaluations in a process of many would leave them, and keep a cache full."""
        self.close()
