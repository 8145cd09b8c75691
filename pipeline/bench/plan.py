"""What the order of an epoch costs one rank, in seconds and memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.bench import memory
from pipeline.bench.spread import ratios, spread
from pipeline.data.plan import Ids, Plan
from shards.errors import InputError
from shards.manifest import Manifest

_PLACES = 20  # steps here and there in the run whose first batch is timed
_EPOCHS = 100


@dataclass(frozen=True)
class PlanFigures:
    """Seconds, one of each repeat; `*_first` are means over places, `peak_bytes` is None where the system is silent."""

    samples: int  # of the dataset
    shards: int
    lanes: int
    world: int
    micro_batch: int
    ids: int  # of the rank's epoch
    order: list[float]  # all of the rank's ids of an epoch, in order
    stepwise: list[float]  # the same, micro-batch by micro-batch as a loader asks for them
    first: list[float]  # a new plan's first micro-batches of step 0 of epoch 0
    later_first: list[float]  # and of any step of any epoch
    peak_bytes: int | None


def even_shards(samples: int, shards: int) -> NDArray[np.int64]:
    """Sizes [shards] of equal shards, to within one sample.

    Raises:
        InputError: fewer samples than shards, or no shard.
    """
    if not 1 <= shards <= samples < 2**40:
        raise InputError(
            f"--samples {samples} cannot lie in --shards {shards}: give at least one sample to each shard, and fewer"
            " than 2**40 in all"
        )
    return np.diff(np.arange(shards + 1, dtype=np.int64) * samples // shards)


def measure(
    sizes: Manifest | NDArray[np.int64], *, lanes: int, micro_batch: int, world: int, repeats: int, seed: int = 0
) -> PlanFigures:
    """Time the order of epochs for the first of `world` ranks; each repeat takes another epoch.

    Raises:
        InputError: fewer samples than a global batch, or lanes that the ranks cannot share.
    """

    def fresh() -> Plan:
        return Plan(sizes, lanes=lanes, micro_batch=micro_batch, seed=seed)

    plan = fresh()
    owned = plan.lanes_of(0, world)
    found: dict[str, list[float]] = {name: [] for name in ("order", "stepwise", "first", "later_first")}
    kept: list[Ids] = []

    def order(epoch: int) -> None:
        kept[:] = [plan.lane_order(epoch, lane) for lane in owned]

    def stepwise(epoch: int) -> None:
        for step in range(plan.steps_per_epoch):
            for lane in owned:
                plan.lane_batch(epoch, step, lane)

    def first_batches(new: Plan, epoch: int, step: int) -> None:
        for lane in owned:
            new.lane_batch(epoch, step, lane)

    def first(places: list[tuple[int, int]]) -> float:
        return sum(_seconds(first_batches, fresh(), *place) for place in places) / len(places)

    peak_bytes = memory.peak(lambda: order(0))
    rng = np.random.default_rng(seed)
    for repeat in range(repeats):
        found["order"].append(_seconds(order, repeat))
        found["stepwise"].append(_seconds(stepwise, repeat))
        places = [(int(rng.integers(_EPOCHS)), int(rng.integers(plan.steps_per_epoch))) for _ in range(_PLACES)]
        found["first"].append(first([(0, 0)] * _PLACES))
        found["later_first"].append(first(places))
    assert sum(len(ids) for ids in kept) == len(owned) * plan.steps_per_epoch * micro_batch
    total = sizes.num_samples if isinstance(sizes, Manifest) else int(sizes.sum())
    shards = len(sizes.shards) if isinstance(sizes, Manifest) else len(sizes)
    return PlanFigures(
        total, shards, lanes, world, micro_batch, sum(len(ids) for ids in kept), **found, peak_bytes=peak_bytes
    )


def _seconds(work: Callable[..., object], *given: object) -> float:
    began = time.perf_counter()
    work(*given)
    return time.perf_counter() - began


def lines(figures: PlanFigures) -> list[str]:
    """The same for a person."""
    peak = "not told by this system" if figures.peak_bytes is None else f"{figures.peak_bytes / 1e6:,.1f} MB"
    return [
        f"{figures.samples:,} samples in {figures.shards:,} shards, {figures.lanes} lanes, rank 0 of {figures.world}:"
        f" {figures.ids:,} ids an epoch; median [lowest-highest] of {len(figures.order)} repeats",
        f"order of one epoch         {spread(figures.order)} s; peak memory {peak}",
        f"asked for step by step     {spread(figures.stepwise)} s, micro-batches of {figures.micro_batch}",
        f"first batch, step 0        {spread([1e3 * s for s in figures.first])} ms",
        f"first batch, any step      {spread([1e3 * s for s in figures.later_first])} ms,"
        f" {spread(ratios(figures.later_first, figures.first))} x of step 0",
    ]
