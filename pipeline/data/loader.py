"""Micro-batches of uint8 images, read and decoded in worker processes, in exactly the order of the plan."""

import atexit
import dataclasses
import math
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from typing import Any, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from pipeline.data.ahead import Ahead
from pipeline.data.augment import Augment, eval_view, sample_rng, train_view
from pipeline.data.batch import Bad, Batch
from pipeline.data.decode import Pixels, UndecodableImageError, decode
from pipeline.data.frames import AHEAD, Arrivals, Frames
from pipeline.data.inorder import InOrder
from pipeline.data.plan import Ids, Plan
from pipeline.data.reader import ShardReader
from shards.manifest import Manifest

Labels = NDArray[np.int32]

_LEFT_TO_THE_RUN = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

_SECONDS_TO_LEAVE = 1.0  # that workers have when they are told to
_IN_ORDER = 2  # shards at once, where samples are read as they lie: a batch may begin in one and end in the next


class TrainBatches(Dataset[Batch]):
    """Map from (epoch, step, lane) to its micro-batch; holds no other state."""

    def __init__(
        self,
        manifest: Manifest,
        plan: Plan,
        labels: Labels,
        *,
        crop: int,
        augment: Augment,
        flip: bool,
        max_pixels: int,
        lanes: int | None = None,
        views: int = 1,
    ) -> None:
        """`lanes` is how many of them one process will be asked for (by default all); `views` is of each image."""
        self._labels, self._plan, self._views = labels, plan, views
        self._crop, self._augment, self._flip, self._max_pixels = crop, augment, flip, max_pixels
        self._manifest, self._frames = manifest, Frames()
        self._reader = ShardReader(manifest, (lanes or plan.lanes) * plan.shuffle_shards)

    def __getstate__(self) -> dict[str, Any]:
        # The dataset's own labels are mapped anew in the worker; sent there, they would be copied for each.
        mapped = np.may_share_memory(self._labels, self._manifest.table)
        return self.__dict__ | ({"_labels": None} if mapped else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._labels is None:
            self._labels = self._manifest.labels

    def __getitem__(self, key: tuple[int, int, int]) -> Batch:
        epoch, step, lane = key
        ids = self._plan.lane_batch(epoch, step, lane)

        def view(image: Pixels, sample_id: int, number: int) -> Pixels:
            rng = sample_rng(self._plan.seed, epoch, sample_id, number)
            return train_view(image, self._crop, self._augment, self._flip, rng)

        images = self._frames.take(self._views, len(ids), self._crop, self._crop, 3)
        bad = _read(self._reader, ids, images.numpy(), self._max_pixels, view)
        return _batch(self._labels, ids, self._plan.positions(ids), images, bad)


@dataclass(frozen=True, eq=False)
class Part:
    """Some ids of a dataset, int64 [n], and the labels of all its samples by id, int32 [N]."""

    ids: Ids
    labels: Labels


class EvalBatches(Dataset[Batch]):
    """Map from a half-open range of places in `part.ids` (by default all ids of the dataset) to their batch."""

    def __init__(
        self, manifest: Manifest, part: Part | None = None, *, crop: int, augment: Augment, max_pixels: int
    ) -> None:
        self._part = part or Part(np.arange(manifest.num_samples, dtype=np.int64), manifest.labels)
        self._crop, self._augment, self._max_pixels = crop, augment, max_pixels
        self._manifest, self._frames = manifest, Frames()
        self._reader = ShardReader(manifest, _IN_ORDER, once=True)

    def ahead(self, keys: Sequence[tuple[int, int]], workers: int, share: int) -> Ahead:
        """What fetches the shards of these batches for so many data workers; `share` processes share the cache."""
        order = InOrder(self._manifest.shard_sizes, self._part.ids, keys)
        return Ahead(self._manifest, order, range(1), 0, len(keys), share, flight=AHEAD * workers)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        ids = self._part.ids[slice(*key)]

        def view(image: Pixels, sample_id: int, number: int) -> Pixels:
            return eval_view(image, self._crop, self._augment)

        images = self._frames.take(1, len(ids), self._crop, self._crop, 3)
        bad = _read(self._reader, ids, images.numpy(), self._max_pixels, view)
        return _batch(self._part.labels, ids, ids, images, bad)


def train_keys(plan: Plan, lanes: range, start_step: int, stop_step: int) -> Iterator[tuple[int, int, int]]:
    """(epoch, step in the epoch, lane) of every micro-batch from one global step to another."""
    for step in range(start_step, stop_step):
        for lane in lanes:
            yield *divmod(step, plan.steps_per_epoch), lane


def lanes_of_a_worker(lanes: int, workers: int) -> int:
    """Lanes of a rank's `lanes` that each data worker reads: worker k mod `workers` prepares micro-batch k."""
    return lanes // math.gcd(lanes, max(1, workers))


def eval_keys(num_samples: int, batch: int, rank: int, world: int) -> Iterator[tuple[int, int]]:
    """Ranges of ids that cover a rank's share of a set: over all ranks, every id exactly once."""
    start, stop = rank * num_samples // world, (rank + 1) * num_samples // world
    for first in range(start, stop, batch):
        yield first, min(first + batch, stop)


class Feed:
    """Batches in the order of the keys, prepared by `workers` processes (0: in this one).

    They come from a fork server, which has nothing but this module in it: forked from here, with the threads of
    collectives and of CUDA running, a worker now and then waited for ever for a lock that some thread had held.

    With `ahead`, which fetches for batches as steps, it says how far they are, and closes it.

    Close it, whatever happened: the workers ignore the signals that end a run, among them the one that Python would
    send them at exit before waiting for them, for ever.
    """

    def __init__(
        self, dataset: Dataset[Any], keys: Iterable[Any], workers: int, pin: bool, ahead: Ahead | None = None
    ) -> None:
        self._ahead, self._handed_over = ahead, 0
        known = set(multiprocessing.active_children())
        self._arrivals = Arrivals(workers) if workers and not pin else None  # pinning copies, too
        self._loader = iter(
            DataLoader(
                dataset,
                batch_size=None,
                sampler=_Keys(keys),
                num_workers=workers,
                collate_fn=_as_it_is,
                pin_memory=pin,
                worker_init_fn=_quiet_worker,
                prefetch_factor=AHEAD if workers else None,
                multiprocessing_context=fork_server() if workers else None,
                # Its own generator: otherwise every iterator would draw from torch's global random numbers.
                generator=torch.Generator(),
            )
        )
        self._prepared: Batch | None = None
        self._workers = set(multiprocessing.active_children()) - known
        # For the caller that never comes to close: exit handlers run last in, first out, so before multiprocessing's.
        atexit.register(self.close)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        batch = next(self._loader) if self._prepared is None else self._prepared
        self._prepared = None
        self._handed_over += 1
        if self._ahead is not None:
            self._ahead.reached(self._handed_over)
        if self._arrivals is not None and isinstance(batch, Batch):
            return dataclasses.replace(batch, images=self._arrivals.copy(batch.images))
        return batch

    def prepare(self) -> None:
        """Wait for the first batch, which stays the next one."""
        self._prepared = next(self._loader)

    def close(self) -> None:
        """End the workers; a second call does nothing."""
        atexit.unregister(self.close)
        if self._ahead is not None:
            self._ahead.close()
        if self._workers:
            # torch's own way first: it forgets the workers, so that their end is not taken for a crash. But it would
            # wait 10 s for each that waits for a shard that does not come: longer than launchers wait.
            impatient = threading.Timer(_SECONDS_TO_LEAVE, self._kill)
            impatient.start()
            self._loader._shutdown_workers()  # type: ignore[attr-defined]
            impatient.cancel()
            impatient.join()
        self._kill()
        for worker in self._workers:
            worker.join()
        self._workers = set()

    def _kill(self) -> None:
        for worker in self._workers:
            worker.kill()


def fork_server() -> ForkServerContext:
    """What starts the workers: a process without threads, which has this module and all that it needs loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # once, instead of in every worker
    # What is blocked here stays so in the server and below it: launchers end a run by a signal to all of its processes,
    # and without the server its workers would count as crashed, before the run has saved.
    multiprocessing.resource_tracker.ensure_running()  # it would unblock them on the way
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_RUN)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


class _Keys:
    """DataLoader wants a sampler; ours is the plan, already in order."""

    def __init__(self, keys: Iterable[Any]) -> None:
        self._keys = keys

    def __iter__(self) -> Iterator[Any]:
        return iter(self._keys)


def _as_it_is(item: Any) -> Any:
    return item


def _quiet_worker(_: int) -> None:
    """A worker works alone on its core and leaves signals to the process that owns it."""
    cv2.setNumThreads(0)
    for number in _LEFT_TO_THE_RUN:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
    """End the worker when its run is gone, killed for example: its own parent, the fork server, would live on."""
    run = multiprocessing.parent_process()
    if run is not None:
        multiprocessing.connection.wait([run.sentinel])
        os._exit(1)


def _read(reader: ShardReader, ids: Ids, pixels: Pixels, max_pixels: int, view: Any) -> tuple[Bad, ...]:
    """Fill `pixels` [V, B, crop, crop, 3] with views of the ids, each decoded once.

    A bad image's place gets the previous good one (or the next), in every view.
    """
    bad: dict[int, Bad] = {}
    views = list(enumerate(pixels))
    for slot, sample_id in enumerate(ids.tolist()):
        try:
            image = decode(reader.image_bytes(sample_id), max_pixels)
        except UndecodableImageError as error:
            bad[slot] = Bad(sample_id, str(error))
            continue
        for number, of_view in views:
            of_view[slot] = view(image, sample_id, number)
    good = [slot for slot in range(len(ids)) if slot not in bad]
    for slot in bad:
        pixels[:, slot] = pixels[:, max((g for g in good if g < slot), default=good[0])] if good else 0
    return tuple(bad.values())


def _batch(given: Labels, ids: Ids, positions: Ids, images: torch.Tensor, bad: tuple[Bad, ...]) -> Batch:
    bad_ids = {b.sample_id for b in bad}
    return Batch(
        images=images if len(images) > 1 else images[0],
        labels=torch.from_numpy(given[ids].astype(np.int64)),
        positions=torch.from_numpy(np.array(positions, dtype=np.int64)),
        valid=torch.tensor([i not in bad_ids for i in ids.tolist()]),
        bad=bad,
    )
