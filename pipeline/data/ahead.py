"""Fetches the shards that a rank will read next, while it trains or evaluates."""

import os
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from pipeline.data.plan import Need
from shards.cache import NEVER, mark
from shards.errors import InputError
from shards.manifest import Manifest

_THREADS = 4  # one connection seldom fills a line
_LOOK = 0.1  # seconds between looks at how far training has come
_PAUSE = 5.0  # seconds before another try at what failed


class _Visit(NamedTuple):
    """A shard, and the first and last step of the run in which one lane of the rank reads it."""

    first: int
    last: int
    shard: int


class Order(Protocol):
    """When which shard is read: `Plan` of training, `InOrder` of an evaluation."""

    steps_per_epoch: int

    def needs(self, epoch: int, lane: int) -> list[Need]:
        """The shards that a lane reads in an epoch, with the steps of it."""


class Ahead:
    """Walks the order from a step on, as far ahead of `reached` as the cache has room, in threads of its own.

    It can neither fail nor delay a run: what does not arrive is left to the data worker that needs it, which fetches it
    itself, with all its retries. It also tells the cache when each shard will be needed again. Shards that are opened
    as they lie are none of its business.

    Args:
        manifest: the dataset.
        order: of its samples.
        lanes: of this rank.
        start: step to begin with.
        stop: step before which the run ends.
        share: processes that share the cache.
        flight: given, it goes no further than a shard for each of its threads beyond so many steps, those that data
            workers are at: an evaluation must not push out what training needs after it.
    """

    def __init__(
        self,
        manifest: Manifest,
        order: Order,
        lanes: range,
        start: int,
        stop: int,
        share: int,
        flight: int | None = None,
    ) -> None:
        self._manifest, self._order, self._lanes, self._stop = manifest, order, lanes, stop
        self._flight = flight
        self._step, self._first_step, self._began = start, start, time.monotonic()
        self._turn, self._closed = threading.Lock(), threading.Event()
        self._window: list[_Visit] = []  # fetched, or being fetched, and not read yet
        self._next_epoch: tuple[int, dict[int, int]] = (-1, {})
        self._stores = [manifest.store_of(shard) for shard in range(len(manifest.shards))]
        self._bytes = [shard.bytes for shard in manifest.shards]
        tables = 0 if manifest.store is None else sum(file.bytes for file in manifest.files.values())
        self._room, self._share = (manifest.cache.bytes - tables) // share, share
        if not manifest.fetches:
            return
        self._visits = (visit for visit in self._in_order(start // order.steps_per_epoch) if visit.last >= start)
        if self._room >= max(size for size, store in zip(self._bytes, self._stores, strict=True) if store):
            for _ in range(_THREADS):
                threading.Thread(target=self._work, daemon=True).start()

    def warning(self) -> str | None:
        """One line where the cache is smaller than what the ranks of this node read at once, else None."""
        if not self._manifest.fetches:
            return None
        at_once = 0
        for lane in self._lanes:
            blocks: dict[int, int] = {}
            for need in self._needs(0, lane):
                blocks[need.first] = blocks.get(need.first, 0) + self._bytes[need.shard]
            at_once += max(blocks.values(), default=0)
        if at_once <= self._room:
            return None
        given, needed = self._manifest.cache.bytes / 1e9, at_once * self._share / 1e9
        return (
            f"data.cache_gb = {given:.3g} is too little for the {needed:.3g} GB of shards that this node reads at once:"
            " they will be fetched again and again; raise it, or lower data.shuffle_shards"
        )

    def reached(self, step: int) -> None:
        """Say that all steps before this one are done; waits for nothing."""
        self._step = step

    def close(self) -> None:
        """Begin nothing more; what is on its way is left to end alone."""
        self._closed.set()

    def _needs(self, epoch: int, lane: int) -> list[Need]:
        return [need for need in self._order.needs(epoch, lane) if self._stores[need.shard] is not None]

    def _in_order(self, epoch: int) -> Iterator[_Visit]:
        while epoch * self._order.steps_per_epoch < self._stop:
            yield from self._epoch(epoch)
            epoch += 1

    def _epoch(self, epoch: int) -> list[_Visit]:
        """What this rank reads in an epoch, in the order of need."""
        base = epoch * self._order.steps_per_epoch
        needs = (need for lane in self._lanes for need in self._needs(epoch, lane))
        visits = [_Visit(base + need.first, base + need.last, need.shard) for need in needs]
        return sorted((visit for visit in visits if visit.first < self._stop), key=lambda visit: visit.first)

    def _work(self) -> None:
        while (visit := self._next()) is not None:
            if not self._fetch(visit):
                self._closed.wait(_PAUSE)
                if not self._closed.is_set() and self._step <= visit.last:
                    self._fetch(visit)

    def _next(self) -> _Visit | None:
        """The next visit, as soon as there is room for its shard; None at the end. One thread waits, others for it."""
        with self._turn:
            visit = next(self._visits, None)
            while visit is not None and not self._closed.is_set():
                self._forget_what_is_read()
                if self._fits(visit):
                    self._window.append(visit)
                    return visit
                self._closed.wait(_LOOK)
            return None

    def _fits(self, visit: _Visit) -> bool:
        if sum(self._bytes[v.shard] for v in self._window) + self._bytes[visit.shard] > self._room:
            return False
        return self._flight is None or sum(v.first > self._step + self._flight for v in self._window) < _THREADS

    def _fetch(self, visit: _Visit) -> bool:
        shard, store = self._manifest.shards[visit.shard], self._stores[visit.shard]
        assert store is not None
        try:
            os.close(store.open(shard.name, shard.bytes, shard.sha256, ahead=True))
        except (InputError, OSError):
            return False  # the worker that needs it will say why
        mark(store.path(shard.name, shard.sha256), time.time() + self._seconds(visit.first))
        return True

    def _forget_what_is_read(self) -> None:
        read = [visit for visit in self._window if visit.last < self._step]
        self._window = [visit for visit in self._window if visit.last >= self._step]
        for visit in read:
            shard, store, step = self._manifest.shards[visit.shard], self._stores[visit.shard], self._again(visit)
            assert store is not None
            wait = NEVER if step is None else self._seconds(step)
            mark(store.path(shard.name, shard.sha256), time.time() + wait)

    def _again(self, visit: _Visit) -> int | None:
        """Step at which a shard is read in the epoch after a visit; None where the run ends before."""
        epoch = visit.first // self._order.steps_per_epoch + 1
        if self._next_epoch[0] != epoch:
            self._next_epoch = epoch, {later.shard: later.first for later in reversed(self._epoch(epoch))}
        return self._next_epoch[1].get(visit.shard)

    def _seconds(self, step: int) -> float:
        """Seconds until a step, at the pace so far."""
        done = self._step - self._first_step
        pace = (time.monotonic() - self._began) / done if done else 0.0
        return max(0, step - self._step) * pace
