"""Sample id -> the image's bytes, read at its place in the shard."""

import os
import resource
from collections import OrderedDict
from typing import Any

from shards.errors import OwnError
from shards.manifest import Manifest

# A rank reads from (its lanes x data.shuffle_shards) shards at once. Half of what the system allows a process.
_OPEN_SHARDS = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


class ShardReader:
    """Reads image bytes by (shard, offset, size); keeps the last shards open. In another process it opens its own."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._descriptors: OrderedDict[int, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"_manifest": self._manifest, "_descriptors": OrderedDict()}

    def image_bytes(self, sample_id: int) -> bytes:
        """Bytes of one image, as they were sharded.

        Raises:
            OwnError: the shard is missing, or not as long as the manifest says.
        """
        row = self._manifest.table[sample_id]
        size = int(row["size"])
        data = os.pread(self._open(int(row["shard"])), size, int(row["offset"]))
        assert len(data) == size, f"short read of sample {sample_id}: {len(data)} of {size} bytes"
        return data

    def _open(self, shard: int) -> int:
        if shard in self._descriptors:
            self._descriptors.move_to_end(shard)
            return self._descriptors[shard]
        path = self._manifest.shard_path(shard)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise OwnError(f"cannot open the shard {path}: {error.strerror}") from None
        expected, found = self._manifest.shards[shard].bytes, os.fstat(descriptor).st_size
        if found != expected:
            os.close(descriptor)
            raise OwnError(f"{path} has {found} bytes, its manifest says {expected}: copy it again, or shard again")
        self._descriptors[shard] = descriptor
        if len(self._descriptors) > _OPEN_SHARDS:
            os.close(self._descriptors.popitem(last=False)[1])
        return descriptor

    def close(self) -> None:
        """Close every shard."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])
