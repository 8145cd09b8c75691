"""The order of training: a pure function of (dataset, seed, epoch, step, lane), the same for every number of ranks."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data.balance import Balance
from shards.errors import InputError
from shards.manifest import Manifest

Ids = NDArray[np.int64]

_SHARD_ORDER = 0  # last word of the random key; blocks count from 1
_BALANCE = 1  # follows it
_STREAM = 0  # keeps these random numbers apart from those of the augmentation


class Need(NamedTuple):
    """A shard, and the steps of the epoch, first and last, of the block in which a lane reads it."""

    shard: int
    first: int
    last: int


class Plan:
    """Which samples form every micro-batch of every step.

    The sorted active ids are cut once into `lanes` contiguous streams of equal length (to within one id). An epoch of a
    lane permutes the shards inside it, then the samples inside each block of `shuffle_shards` shards, and is read in
    micro-batches of `micro_batch`. Step k's global batch is one micro-batch of every lane, so any world size that
    divides `lanes` gives the same micro-batches. Nothing is stored between calls: every answer is a function of its
    arguments.

    With `balance`, an epoch of a lane is a fresh part of its samples that holds every class equally often: class totals
    of an epoch differ by one at most where every lane has enough of every class (`pipeline.data.balance`), and by what
    `deficit` says where not. The rest is as above.

    Args:
        manifest_or_shard_sizes: a dataset, or the number of samples in each shard.
        lanes: streams L; the world size must divide it.
        micro_batch: samples m of one lane in one step.
        seed: any int >= 0.
        active: ids in use, in any order (all of them by default).
        balance: label of every id, [N], to balance by; True takes those of the dataset.
        epoch_samples: samples of a balanced epoch (default: of each class as many as the rarest one has).
        shuffle_shards: shards whose samples are shuffled together; what a reader holds open.

    Raises:
        InputError: fewer samples than one global batch, `active` names an id twice or outside the dataset, or a
            balanced epoch of more samples than there are.
    """

    def __init__(
        self,
        manifest_or_shard_sizes: Manifest | Sequence[int] | NDArray[np.integer],
        *,
        lanes: int,
        micro_batch: int,
        seed: int,
        active: Sequence[int] | NDArray[np.integer] | None = None,
        balance: bool | NDArray[np.integer] | None = None,
        epoch_samples: int | None = None,
        shuffle_shards: int = 16,
    ) -> None:
        for name, value, least in (
            ("lanes", lanes, 1),
            ("micro_batch", micro_batch, 1),
            ("shuffle_shards", shuffle_shards, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise InputError(f"{name} = {value} must be at least {least}")
        given = manifest_or_shard_sizes
        sizes = given.shard_sizes if isinstance(given, Manifest) else np.asarray(given, dtype=np.int64)
        self.lanes, self.micro_batch, self.seed, self.shuffle_shards = lanes, micro_batch, seed, shuffle_shards
        self._shard_ends = np.cumsum(sizes, dtype=np.int64)
        total = int(self._shard_ends[-1]) if len(self._shard_ends) else 0
        self._active = None if active is None else _checked(active, total)
        self.num_active = total if self._active is None else len(self._active)
        self._balance: Balance | None = None
        if balance is not None and balance is not False:
            labels = given.labels if balance is True and isinstance(given, Manifest) else balance
            assert isinstance(labels, np.ndarray), "labels, or a dataset that has them"
            self._balance = Balance(labels if self._active is None else labels[self._active], epoch_samples)
        samples = self.num_active if self._balance is None else self._balance.samples
        self.steps_per_epoch = samples // (lanes * micro_batch)
        if self.steps_per_epoch == 0:
            raise InputError(
                f"{samples} samples are fewer than one global batch of {lanes * micro_batch}"
                f" (data.lanes {lanes} x data.micro_batch {micro_batch}): lower one of them"
            )
        self._remember()

    def _remember(self) -> None:
        # Cached per instance: a lane's epoch is asked for step by step, and its blocks are dear only the first time.
        self._lane_epoch = lru_cache(maxsize=2 * self.lanes)(self._cut_lane)
        self._block = lru_cache(maxsize=4 * self.lanes)(self._shuffle_block)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lane_epoch", "_block")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._remember()

    @property
    def global_batch(self) -> int:
        """Samples in one step, L x m."""
        return self.lanes * self.micro_batch

    def lane_batch(self, epoch: int, step: int, lane: int) -> Ids:
        """Ids [m] of one micro-batch, int64, in order."""
        assert epoch >= 0 and 0 <= step < self.steps_per_epoch and 0 <= lane < self.lanes, (epoch, step, lane)
        block_ends = self._lane_epoch(epoch, lane)[2]
        start, stop = step * self.micro_batch, (step + 1) * self.micro_batch
        first, last = int(block_ends.searchsorted(start, "right")), int(block_ends.searchsorted(stop - 1, "right"))
        begin = int(block_ends[first - 1]) if first else 0
        blocks = [self._block(epoch, lane, block) for block in range(first, last + 1)]
        positions = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return self.ids(positions[start - begin : stop - begin].copy())

    def lane_order(self, epoch: int, lane: int) -> Ids:
        """Ids [steps_per_epoch * m] of an epoch of a lane, int64, in order: its micro-batches one after the other."""
        assert epoch >= 0 and 0 <= lane < self.lanes, (epoch, lane)
        blocks = range(len(self._lane_epoch(epoch, lane)[2]))
        # Not through the cache, which the blocks of a whole epoch would only sweep clean.
        positions = np.concatenate([self._shuffle_block(epoch, lane, block) for block in blocks])
        return self.ids(positions[: self.steps_per_epoch * self.micro_batch])

    def batch(self, epoch: int, step: int) -> Ids:
        """Ids [L * m] of one step, lane after lane."""
        return np.concatenate([self.lane_batch(epoch, step, lane) for lane in range(self.lanes)])

    def needs(self, epoch: int, lane: int) -> list[Need]:
        """The shards that a lane reads in an epoch, in the order of need; those of one block are needed together.

        No other shard is read. Of the last block, which the end of the epoch may cut short, one may turn out unread.
        """
        starts, stops, block_ends, taken = self._cut_lane(epoch, lane)
        read, found, begin = self.steps_per_epoch * self.micro_batch, [], 0
        for block, end in enumerate(block_ends.tolist()):
            if begin >= read:
                break
            runs = slice(block * self.shuffle_shards, (block + 1) * self.shuffle_shards)
            for start, stop in zip(starts[runs].tolist(), stops[runs].tolist(), strict=True):
                lane_start = self._lane_start(lane)
                if taken is None or taken[start - lane_start : stop - lane_start].any():
                    sample = start if self._active is None else self._active[start]
                    shard = int(np.searchsorted(self._shard_ends, sample, side="right"))
                    found.append(Need(shard, begin // self.micro_batch, (min(end, read) - 1) // self.micro_batch))
            begin = end
        return found

    def lanes_of(self, rank: int, world: int) -> range:
        """Lanes that a rank owns.

        Raises:
            InputError: the world size does not divide the lanes.
        """
        if world < 1 or self.lanes % world:
            fits = ", ".join(str(w) for w in range(1, self.lanes + 1) if self.lanes % w == 0)
            raise InputError(
                f"{world} processes cannot share data.lanes = {self.lanes} equally: start {fits} of them, or set"
                f" data.lanes to a multiple of {world}"
            )
        assert 0 <= rank < world, (rank, world)
        per_rank = self.lanes // world
        return range(rank * per_rank, (rank + 1) * per_rank)

    def home(self, rank: int, world: int) -> tuple[int, int]:
        """Half-open range of positions in the sorted active ids that a rank's lanes draw from."""
        lanes = self.lanes_of(rank, world)
        return self._lane_start(lanes.start), self._lane_start(lanes.stop)

    def ids(self, positions: Ids) -> Ids:
        """Ids at positions of the sorted active ids."""
        return positions if self._active is None else self._active[positions]

    def positions(self, ids: Ids) -> Ids:
        """Positions of active ids; the inverse of `ids`."""
        return ids if self._active is None else np.searchsorted(self._active, ids)

    def deficit(self, epoch: int) -> dict[int, int]:
        """Samples that lanes lack in a balanced epoch, by label, where they do; other classes stand in."""
        if self._balance is None:
            return {}
        lanes = [self._balance.lacking(*self._turn(epoch, lane)) for lane in range(self.lanes)]
        return {int(label): int(n) for label, n in zip(self._balance.labels, np.sum(lanes, axis=0), strict=True) if n}

    def _turn(self, epoch: int, lane: int) -> tuple[slice, int, int]:
        """A lane's positions, its samples an epoch, and the number of its turn among all lanes of all epochs."""
        positions = slice(self._lane_start(lane), self._lane_start(lane + 1))
        return positions, self.steps_per_epoch * self.micro_batch, epoch * self.lanes + lane

    def _taken(self, epoch: int, lane: int) -> NDArray[np.bool_] | None:
        """Which positions of a lane an epoch takes; None for all of them."""
        if self._balance is None:
            return None
        positions, samples, turn = self._turn(epoch, lane)
        words = self._words(positions.stop - positions.start, epoch, lane, _SHARD_ORDER, _BALANCE)
        return self._balance.chosen(positions, samples, turn, words)

    def _lane_start(self, lane: int) -> int:
        return lane * self.num_active // self.lanes

    def _cut_lane(self, epoch: int, lane: int) -> tuple[Ids, Ids, Ids, NDArray[np.bool_] | None]:
        """Runs of positions of one shard each, in this epoch's order: starts, ends; ends of blocks; which are taken."""
        start, stop = self._lane_start(lane), self._lane_start(lane + 1)
        ends = self._shard_ends if self._active is None else np.searchsorted(self._active, self._shard_ends)
        inner = ends[(ends > start) & (ends < stop)]
        # A shard without active ids repeats its neighbour's end.
        borders = np.unique(np.concatenate([[start], inner, [stop]])).astype(np.int64)
        order = self._permutation(len(borders) - 1, epoch, lane, _SHARD_ORDER)
        starts, stops = borders[:-1][order], borders[1:][order]
        taken = self._taken(epoch, lane)
        before = np.arange(stop - start + 1) if taken is None else np.append(0, np.cumsum(taken))
        lengths = np.cumsum(before[stops - start] - before[starts - start])
        last_of_block = np.arange(self.shuffle_shards - 1, len(order), self.shuffle_shards)
        block_ends = lengths[last_of_block]
        if not len(block_ends) or block_ends[-1] != lengths[-1]:
            block_ends = np.append(block_ends, lengths[-1])
        return starts, stops, block_ends, taken

    def _shuffle_block(self, epoch: int, lane: int, block: int) -> Ids:
        starts, stops, _, taken = self._lane_epoch(epoch, lane)
        runs = slice(block * self.shuffle_shards, (block + 1) * self.shuffle_shards)
        positions = np.concatenate([np.arange(a, b) for a, b in zip(starts[runs], stops[runs], strict=True)])
        if taken is not None:
            positions = positions[taken[positions - self._lane_start(lane)]]
        return positions[self._permutation(len(positions), epoch, lane, block + 1)]

    def _permutation(self, length: int, *key: int) -> Ids:
        """A random permutation that depends on nothing but (seed, key).

        Sorting raw Philox words, because numpy promises the raw stream of a bit generator for good, but lets
        `Generator.permutation` change between releases: an upgrade must not change the order of a run.
        """
        words = self._words(length, *key)
        # A quarter of the time of a stable argsort: the places take the words' lowest bits, and plain numbers are
        # sorted. That is the same order unless two words agree in all the others, which is then seen.
        bits = np.uint64(max(0, length - 1).bit_length())
        places = words >> bits << bits | np.arange(length, dtype=np.uint64)
        places.sort()
        upper = places >> bits
        if (upper[1:] == upper[:-1]).any():
            return np.argsort(words, kind="stable")
        return (places & ((np.uint64(1) << bits) - np.uint64(1))).view(np.int64)

    def _words(self, length: int, *key: int) -> NDArray[np.uint64]:
        return np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=(_STREAM, *key))).random_raw(length)


def _checked(active: Sequence[int] | NDArray[np.integer], total: int) -> Ids:
    ids = np.sort(np.asarray(active, dtype=np.int64))
    if len(ids) and (ids[0] < 0 or ids[-1] >= total):
        bad = int(ids[0] if ids[0] < 0 else ids[-1])
        raise InputError(f"active id {bad} is outside the dataset's 0..{total - 1}")
    repeated = ids[1:][np.diff(ids) == 0]
    if len(repeated):
        raise InputError(f"active id {int(repeated[0])} is given twice")
    return ids
