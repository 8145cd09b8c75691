"""The order of an evaluation: samples as they lie, batch after batch."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.plan import Ids, Need


class InOrder:
    """What `Plan` is to training, as far as `Ahead` asks: an epoch of one lane, whose steps are the batches.

    Args:
        shard_sizes: samples in each shard of the dataset, int64 [S].
        ids: those that are read, int64 [n], ascending.
        keys: half-open ranges of places in `ids`, one for each batch.
    """

    def __init__(self, shard_sizes: NDArray[np.int64], ids: Ids, keys: Sequence[tuple[int, int]]) -> None:
        self._ends, self._ids, self._keys = np.cumsum(shard_sizes), ids, keys
        self.steps_per_epoch = max(1, len(keys))

    def needs(self, epoch: int, lane: int) -> list[Need]:
        """Every shard, with the first and the last batch that reads it; the same in each epoch."""
        if not self._keys:
            return []
        shards = self._ends.searchsorted(np.concatenate([self._ids[first:stop] for first, stop in self._keys]), "right")
        batches = np.repeat(np.arange(len(self._keys)), [stop - first for first, stop in self._keys])
        found, first, count = np.unique(shards, return_index=True, return_counts=True)
        last = first + count - 1  # ascending ids: what lies in one shard is read in one go
        return [
            Need(*need) for need in zip(found.tolist(), batches[first].tolist(), batches[last].tolist(), strict=True)
        ]
