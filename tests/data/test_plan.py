"""The invariants of the order, for random datasets, lanes, batches and worlds."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.plan import Plan
from shards.errors import InputError


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=12))
    total = sum(sizes)
    active = None
    if draw(st.booleans()):
        chosen = draw(st.lists(st.booleans(), min_size=total, max_size=total))
        active = [i for i, use in enumerate(chosen) if use]
    number = total if active is None else len(active)
    lanes = draw(st.integers(1, 8))
    micro_batch = draw(st.integers(1, 6))
    if number < lanes * micro_batch:
        sizes, active = [*sizes, lanes * micro_batch], None
    return Plan(
        sizes,
        lanes=lanes,
        micro_batch=micro_batch,
        seed=draw(st.integers(0, 2**40)),
        active=active,
        shuffle_shards=draw(st.integers(1, 5)),
    )


def epoch_ids(plan: Plan, epoch: int) -> np.ndarray:
    return np.concatenate([plan.batch(epoch, step) for step in range(plan.steps_per_epoch)])


@given(plans(), st.integers(0, 1000))
@settings(deadline=None, max_examples=150)
def test_an_epoch_takes_no_id_twice_and_leaves_out_less_than_a_global_batch(plan: Plan, epoch: int) -> None:
    ids = epoch_ids(plan, epoch)
    every = plan.ids(np.arange(plan.num_active))
    assert len(np.unique(ids)) == len(ids) == plan.steps_per_epoch * plan.lanes * plan.micro_batch
    assert np.isin(ids, every).all()
    assert plan.num_active - len(ids) < plan.global_batch
    assert (plan.ids(plan.positions(ids)) == ids).all()


@given(plans(), st.integers(0, 50))
@settings(deadline=None, max_examples=100)
def test_every_world_size_gives_the_same_micro_batches_from_disjoint_homes(plan: Plan, epoch: int) -> None:
    step = epoch % plan.steps_per_epoch
    whole = plan.batch(epoch, step)
    for world in (w for w in range(1, plan.lanes + 1) if plan.lanes % w == 0):
        homes = [plan.home(rank, world) for rank in range(world)]
        assert homes[0][0] == 0
        assert homes[-1][1] == plan.num_active
        assert all(a[1] == b[0] for a, b in pairwise(homes))
        lanes = [plan.lanes_of(rank, world) for rank in range(world)]
        assert {len(r) for r in lanes} == {plan.lanes // world}
        shares = [np.concatenate([plan.lane_batch(epoch, step, lane) for lane in r]) for r in lanes]
        assert (np.concatenate(shares) == whole).all()
        for (start, stop), share in zip(homes, shares, strict=True):
            positions = plan.positions(share)
            assert ((start <= positions) & (positions < stop)).all()


@st.composite
def large_plans(draw: st.DrawFn) -> Plan:
    """Up to 512 lanes over shards of very different sizes, some ids perhaps left out, classes perhaps balanced."""
    lanes, micro_batch = draw(st.sampled_from([24, 60, 64, 96, 256, 384, 512])), draw(st.integers(1, 4))
    sizes = draw(st.lists(st.sampled_from([1, 7, 50, 333, 1000]), min_size=1, max_size=20))
    sizes.append(lanes * micro_batch)
    total, rng = sum(sizes), np.random.default_rng(draw(st.integers(0, 2**32)))
    active = None
    if draw(st.booleans()):
        active = rng.permutation(total)[: draw(st.integers(lanes * micro_batch, total))]
    number = total if active is None else len(active)
    balance = rng.choice(5, total, p=[0.5, 0.3, 0.1, 0.09, 0.01]) if draw(st.booleans()) else None
    return Plan(
        sizes,
        lanes=lanes,
        micro_batch=micro_batch,
        seed=draw(st.integers(0, 2**40)),
        active=active,
        balance=balance,
        epoch_samples=None if balance is None else draw(st.integers(lanes * micro_batch, number)),
        shuffle_shards=draw(st.integers(1, 16)),
    )


@given(large_plans(), st.integers(0, 9))
@settings(deadline=None, max_examples=25)
def test_hundreds_of_ranks_share_an_epoch_without_overlap(plan: Plan, epoch: int) -> None:
    step = epoch % plan.steps_per_epoch
    whole = plan.batch(epoch, step)
    for world in (w for w in range(1, plan.lanes + 1) if plan.lanes % w == 0):
        homes = np.array([plan.home(rank, world) for rank in range(world)])
        assert homes[0, 0] == 0 and homes[-1, 1] == plan.num_active and (homes[1:, 0] == homes[:-1, 1]).all()
        shares = whole.reshape(world, -1)
        positions = plan.positions(whole).reshape(world, -1)
        assert ((homes[:, :1] <= positions) & (positions < homes[:, 1:])).all()
        middle = world // 2
        lanes = [plan.lane_batch(epoch, step, lane) for lane in plan.lanes_of(middle, world)]
        assert (np.concatenate(lanes) == shares[middle]).all()
    ids = epoch_ids(plan, epoch)
    assert len(np.unique(ids)) == len(ids) == plan.steps_per_epoch * plan.global_batch


@given(plans(), st.integers(0, 50))
@settings(deadline=None, max_examples=50)
def test_the_order_needs_no_history(plan: Plan, epoch: int) -> None:
    last = plan.steps_per_epoch - 1
    fresh = Plan(
        np.diff(plan._shard_ends, prepend=0),
        lanes=plan.lanes,
        micro_batch=plan.micro_batch,
        seed=plan.seed,
        active=plan._active,
        shuffle_shards=plan.shuffle_shards,
    )
    in_order = [plan.batch(epoch, step) for step in range(plan.steps_per_epoch)]
    assert (fresh.batch(epoch, last) == in_order[last]).all()


@given(plans(), st.integers(0, 50), st.booleans())
@settings(deadline=None, max_examples=150)
def test_needs_are_what_the_batches_of_a_block_read(plan: Plan, epoch: int, balanced: bool) -> None:
    labels = np.arange(plan._shard_ends[-1]) * 7919 % 3
    used = labels if plan._active is None else labels[plan._active]
    if balanced and plan.num_active // 3 >= plan.global_batch and len(np.unique(used)) == 3:
        plan = Plan(
            np.diff(plan._shard_ends, prepend=0),
            lanes=plan.lanes,
            micro_batch=plan.micro_batch,
            seed=plan.seed,
            active=plan._active,
            balance=labels,
            epoch_samples=plan.num_active // 3,
            shuffle_shards=plan.shuffle_shards,
        )
    for lane in range(plan.lanes):
        read: dict[int, set[int]] = {}  # shard -> steps
        for step in range(plan.steps_per_epoch):
            for sample in plan.lane_batch(epoch, step, lane):
                shard = next(i for i, end in enumerate(plan._shard_ends) if sample < end)
                read.setdefault(shard, set()).add(step)
        needs = plan.needs(epoch, lane)
        assert len({need.shard for need in needs}) == len(needs)
        assert [need.first for need in needs] == sorted(need.first for need in needs)
        blocks: dict[tuple[int, int], set[int]] = {}
        for need in needs:
            blocks.setdefault((need.first, need.last), set()).add(need.shard)
        listed = {need.shard: need for need in needs}
        assert read.keys() <= listed.keys()
        assert all(
            listed[shard].first <= min(steps) and max(steps) <= listed[shard].last for shard, steps in read.items()
        )
        ends = sorted(blocks)
        for (first, last), shards in blocks.items():
            steps = set().union(*(read.get(shard, set()) for shard in shards))
            # A block is named with exactly its own first and last step, and all of its shards are read, but for a last
            # block that is cut short; two short blocks may lie in one step.
            assert (min(steps), max(steps)) == (first, last)
            assert (first, last) == ends[-1] or shards <= read.keys()


def test_lanes_are_equal_to_within_one_id() -> None:
    plan = Plan([10] * 101, lanes=8, micro_batch=3, seed=0)
    lengths = [stop - start for start, stop in (plan.home(rank, 8) for rank in range(8))]
    assert set(lengths) == {126, 127}
    assert sum(lengths) == 1010


def test_epochs_differ_and_leave_out_different_ids() -> None:
    plan = Plan([25] * 8, lanes=4, micro_batch=7, seed=3)
    left_out = [frozenset(range(200)) - frozenset(epoch_ids(plan, epoch).tolist()) for epoch in range(6)]
    assert all(left_out)
    assert len(set(left_out)) == 6
    assert len(set.union(*map(set, left_out))) > 12  # 4 of 200 each time, hardly ever the same
    assert not (plan.batch(0, 0) == plan.batch(1, 0)).all()


def test_samples_mix_within_a_block_of_shards_and_stay_in_it() -> None:
    plan = Plan([10] * 12, lanes=1, micro_batch=10, seed=0, shuffle_shards=3)
    blocks = [{int(i) // 10 for i in np.concatenate([plan.batch(5, 3 * b + s) for s in range(3)])} for b in range(4)]
    assert all(len(block) == 3 for block in blocks)
    assert set.union(*blocks) == set(range(12))
    assert len({int(i) // 10 for i in plan.batch(5, 0)}) > 1


def test_every_place_in_an_epoch_is_equally_likely() -> None:
    plan = Plan([20] * 4, lanes=1, micro_batch=20, seed=1)
    first = np.concatenate([plan.batch(epoch, 0) for epoch in range(400)])
    counts = np.bincount(first, minlength=80)
    # 100 expected each; a standard deviation is about 8.7.
    assert abs(counts - 100).max() < 45


def test_seeds_differ() -> None:
    a, b = (Plan([100], lanes=1, micro_batch=100, seed=seed) for seed in (0, 1))
    assert not (a.batch(0, 0) == b.batch(0, 0)).all()


@given(plans(), st.integers(0, 50))
@settings(deadline=None, max_examples=50)
def test_a_lanes_order_is_its_micro_batches_one_after_the_other(plan: Plan, epoch: int) -> None:
    for lane in range(plan.lanes):
        batches = [plan.lane_batch(epoch, step, lane) for step in range(plan.steps_per_epoch)]
        assert plan.lane_order(epoch, lane).tolist() == np.concatenate(batches).tolist()


@pytest.mark.parametrize("different", [2**64 - 1, 2**20, 300, 1])
def test_a_permutation_sorts_the_random_words_and_equal_ones_stay_in_order(different: int) -> None:
    """Few different words, in whose upper bits most agree, are what a run in millions of years may draw."""
    plan = Plan([1000], lanes=1, micro_batch=10, seed=0)
    for length in (0, 1, 2, 3, 64, 1000):
        words = np.random.default_rng(length).integers(0, different, length, dtype=np.uint64)
        plan._words = lambda *_, words=words: words  # type: ignore[method-assign]
        assert plan._permutation(length, 0).tolist() == sorted(range(length), key=words.tolist().__getitem__)


def test_a_batch_may_be_written_to() -> None:
    plan = Plan([50, 50], lanes=2, micro_batch=5, seed=0)
    before = plan.lane_batch(0, 1, 0)
    kept = before.tolist()
    before[:] = -1
    assert plan.lane_batch(0, 1, 0).tolist() == kept


def test_the_order_is_pinned() -> None:
    """A change of these ids changes the order of every run in progress: it needs a new major version."""
    plan = Plan([6, 6], lanes=2, micro_batch=3, seed=7, shuffle_shards=1)
    assert plan.batch(2, 1).tolist() == [5, 2, 4, 10, 7, 9]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lanes": 0}, "lanes = 0"),
        ({"micro_batch": 0}, "micro_batch = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"lanes": 4, "micro_batch": 26}, "100 samples are fewer than one global batch of 104"),
        ({"active": [1, 1, *range(20, 60)]}, "active id 1 is given twice"),
        ({"active": [*range(50), 100]}, "active id 100 is outside"),
    ],
)
def test_mistakes_are_named(change: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Plan([50, 50], **({"lanes": 2, "micro_batch": 5, "seed": 0} | change))


def test_a_world_that_does_not_divide_the_lanes_is_told_which_do() -> None:
    plan = Plan([100], lanes=6, micro_batch=2, seed=0)
    with pytest.raises(InputError, match="start 1, 2, 3, 6 of them"):
        plan.lanes_of(0, 4)
