"""Images/s of the loader, of the same decode-and-crop in a bare loop, and of reading bytes alone."""

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.bench.spread import ratios, spread, table
from pipeline.data.augment import Augment, sample_rng, train_view
from pipeline.data.decode import UndecodableImageError, decode
from pipeline.data.loader import Feed, TrainBatches, fork_server, train_keys
from pipeline.data.plan import Plan
from pipeline.data.reader import ShardReader
from shards.errors import InputError
from shards.manifest import Manifest

_AUGMENT: Augment = "resized_crop"
_MAX_PIXELS = 178_956_970  # as data.max_pixels
_TOGETHER_S = 120.0  # seconds that processes wait for each other before they begin

Key = tuple[int, int, int]


@dataclass(frozen=True)
class Setting:
    """What is timed: `images` of each repeat, through `workers` processes (0: in this one)."""

    workers: int = 2
    crop: int = 224
    micro_batch: int = 64
    images: int = 2048
    repeats: int = 5

    @property
    def processes(self) -> int:
        """That decode."""
        return max(1, self.workers)


@dataclass(frozen=True)
class LoaderFigures:
    """One of each repeat: images/s of all processes together, and seconds until a first batch."""

    setting: Setting
    loader: list[float]
    bare: list[float]
    bytes_only: list[float]
    first: list[float]  # step 0, without workers
    later_first: list[float]  # any step of any epoch


class Encoded(Dataset[list[bytes]]):
    """Map from (epoch, step, lane) to the undecoded images of its micro-batch."""

    def __init__(self, manifest: Manifest, plan: Plan) -> None:
        self._reader, self._plan = ShardReader(manifest, plan.lanes * plan.shuffle_shards), plan

    def __getitem__(self, key: Key) -> list[bytes]:
        return [self._reader.image_bytes(i) for i in self._plan.lane_batch(*key).tolist()]


def measure(manifest: Manifest, setting: Setting) -> LoaderFigures:
    """Go round all of them in every repeat; each image is read once before the clock starts.

    Raises:
        InputError: fewer images than a micro-batch for every worker, or more workers than micro-batches in a repeat.
    """
    lanes, micro_batch = setting.processes, setting.micro_batch
    if manifest.num_samples < lanes * micro_batch:
        raise InputError(
            f"{manifest.place} has {manifest.num_samples:,} images, fewer than {lanes} micro-batches of {micro_batch}:"
            " lower --micro-batch or --workers"
        )
    if setting.images < 2 * lanes * micro_batch:
        raise InputError(
            f"--images {setting.images} is less than two micro-batches of {micro_batch} for each of {lanes} workers:"
            " raise it, or lower --micro-batch"
        )
    plan = Plan(manifest, lanes=lanes, micro_batch=micro_batch, seed=0)
    dataset = TrainBatches(
        manifest, plan, manifest.labels, crop=setting.crop, augment=_AUGMENT, flip=True, max_pixels=_MAX_PIXELS
    )
    keys = list(train_keys(plan, range(lanes), 0, setting.images // (lanes * micro_batch)))
    undecoded = Encoded(manifest, plan)
    for key in keys:
        undecoded[key]
    figures = LoaderFigures(setting, [], [], [], [], [])
    rng = np.random.default_rng(0)
    for _ in range(setting.repeats):
        figures.loader.append(feed_rate(dataset, keys, setting))
        figures.bare.append(bare_rate(manifest, plan, keys, setting))
        figures.bytes_only.append(feed_rate(undecoded, keys, setting))
        anywhere = (int(rng.integers(100)), int(rng.integers(plan.steps_per_epoch)), 0)
        for seconds, key in ((figures.first, (0, 0, 0)), (figures.later_first, anywhere)):
            seconds.append(_first_batch(manifest, key, setting))
    return figures


def feed_rate(dataset: Dataset[Any], keys: list[Key], setting: Setting) -> float:
    """Images/s of a feed of these keys, whose workers are busy from the start of the clock to its end."""
    ends = keys[: setting.processes]
    with closing(Feed(dataset, [*ends, *keys, *ends, *ends], setting.workers, pin=torch.cuda.is_available())) as feed:
        return steady(feed, len(ends), len(keys), setting.micro_batch)


def steady(batches: Iterator[Any], untimed: int, timed: int, size: int) -> float:
    """Images/s of `timed` batches of `size` images each, after the first `untimed` ones, which start the workers."""
    for _ in range(untimed):
        next(batches)
    began = time.perf_counter()
    for _ in range(timed):
        next(batches)
    return timed * size / (time.perf_counter() - began)


def bare_rate(manifest: Manifest, plan: Plan, keys: list[Key], setting: Setting) -> float:
    """Images/s of decode and crop alone: as many processes as the loader has, each with its images in memory."""
    if not setting.workers:
        return _bare_loop(manifest, plan, keys, setting.crop)
    context, ends = fork_server(), []
    for number in range(setting.workers):
        ours, theirs = multiprocessing.Pipe()
        share = keys[number :: setting.workers]
        process = context.Process(target=_bare_process, args=(theirs, manifest, plan, share, setting.crop), daemon=True)
        process.start()
        theirs.close()
        ends.append((process, ours))
    try:
        for _, end in ends:
            end.recv()  # it is ready
        for _, end in ends:
            end.send(None)
        return sum(end.recv() for _, end in ends)
    except EOFError:
        raise RuntimeError("a process that decodes ended before it answered") from None
    finally:
        for process, end in ends:
            end.close()
            process.join(_TOGETHER_S)


def _bare_process(end: Connection, manifest: Manifest, plan: Plan, keys: list[Key], crop: int) -> None:
    torch.set_num_threads(1)  # as in a loader's worker

    def together() -> None:
        end.send(None)
        end.recv()

    end.send(_bare_loop(manifest, plan, keys, crop, together))


def _bare_loop(manifest: Manifest, plan: Plan, keys: list[Key], crop: int, together: Any = lambda: None) -> float:
    """Images/s; `together` is called when all is read and the clock is about to start."""
    reader = ShardReader(manifest, plan.lanes * plan.shuffle_shards)
    samples = [(epoch, i) for epoch, step, lane in keys for i in plan.lane_batch(epoch, step, lane).tolist()]
    encoded = [reader.image_bytes(i) for _, i in samples]
    pixels = np.zeros((plan.micro_batch, crop, crop, 3), dtype=np.uint8)
    together()
    began = time.perf_counter()
    for slot, ((epoch, i), data) in enumerate(zip(samples, encoded, strict=True)):
        try:
            view = train_view(decode(data, _MAX_PIXELS), crop, _AUGMENT, True, sample_rng(plan.seed, epoch, i))
        except UndecodableImageError:
            continue
        pixels[slot % plan.micro_batch] = view
    return len(samples) / (time.perf_counter() - began)


def _first_batch(manifest: Manifest, key: Key, setting: Setting) -> float:
    """Seconds from nothing but the open manifest to the first micro-batch, in this process."""
    began = time.perf_counter()
    plan = Plan(manifest, lanes=setting.processes, micro_batch=setting.micro_batch, seed=0)
    TrainBatches(
        manifest, plan, manifest.labels, crop=setting.crop, augment=_AUGMENT, flip=True, max_pixels=_MAX_PIXELS
    )[key]
    return time.perf_counter() - began


def lines(figures: LoaderFigures) -> list[str]:
    """The same for a person."""
    setting = figures.setting
    rows = [
        [name, spread(rates), spread([rate / setting.processes for rate in rates]), spread(ratios(rates, figures.bare))]
        for name, rates in (("loader", figures.loader), ("bare loop", figures.bare), ("bytes only", figures.bytes_only))
    ]
    where = f"{setting.workers} workers" if setting.workers else "this process alone"
    return [
        f"{where}, crop {setting.crop}, micro-batches of {setting.micro_batch}, {setting.images:,} images a repeat, all"
        f" read once before; median [lowest-highest] of {setting.repeats} repeats in turn",
        *table(["images/s", "together", "each process", "over the bare loop"], rows).splitlines(),
        f"first batch, step 0    {spread(figures.first)} s",
        f"first batch, any step  {spread(figures.later_first)} s,"
        f" {spread(ratios(figures.later_first, figures.first))} x of step 0 (other images)",
    ]
