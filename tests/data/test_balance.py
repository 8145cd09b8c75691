"""Class-balanced epochs: quotas, and the plan that keeps them for random labels, lanes and worlds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.balance import quotas, wanted
from pipeline.data.plan import Plan
from shards.errors import InputError
from shards.manifest import Manifest


@given(st.lists(st.integers(0, 30), min_size=1, max_size=7), st.data())
@settings(deadline=None, max_examples=200)
def test_a_lane_takes_what_was_asked_as_equally_as_it_can(available: list[int], data: st.DataObject) -> None:
    samples = data.draw(st.integers(0, sum(available)))
    taken = quotas(np.array(available), samples, data.draw(st.integers(0, 50)))
    assert taken.sum() == samples
    assert (taken <= available).all() and (taken >= 0).all()
    # Nothing that is left could have made it more equal: who has some left took at most one less than the most taken.
    left = taken < available
    assert not left.any() or taken[left].min() >= taken.max() - 1


def test_no_class_is_always_the_first_to_make_up() -> None:
    extra = np.sum([quotas(np.array([0, 9, 9, 9]), 4, turn) for turn in range(12)], axis=0)
    assert extra.tolist() == [0, 16, 16, 16]


@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 30), st.integers(1, 12))
@settings(deadline=None)
def test_turns_that_follow_one_another_deal_equally(classes: int, samples: int, first: int, turns: int) -> None:
    total = np.sum([wanted(classes, samples, turn) for turn in range(first, first + turns)], axis=0)
    assert total.sum() == turns * samples and total.max() - total.min() <= 1


@st.composite
def balanced(draw: st.DrawFn) -> tuple[Plan, np.ndarray]:
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
    total, lanes, micro_batch = sum(sizes), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    if total < lanes * micro_batch:
        sizes, total = [lanes * micro_batch], lanes * micro_batch
    labels = np.array(draw(st.lists(st.integers(0, 4), min_size=total, max_size=total)))
    active = None
    if draw(st.booleans()) and total > lanes * micro_batch:
        active = np.sort(draw(st.permutations(range(total)))[: draw(st.integers(lanes * micro_batch, total))])
    number = total if active is None else len(active)
    samples = draw(st.integers(lanes * micro_batch, number))
    plan = Plan(
        sizes,
        lanes=lanes,
        micro_batch=micro_batch,
        seed=draw(st.integers(0, 99)),
        active=active,
        balance=labels,
        epoch_samples=samples,
        shuffle_shards=draw(st.integers(1, 3)),
    )
    assert plan.steps_per_epoch == samples // plan.global_batch
    return plan, labels


@given(balanced(), st.integers(0, 20))
@settings(deadline=None, max_examples=150)
def test_an_epoch_is_balanced_up_to_what_lanes_lack(case: tuple[Plan, np.ndarray], epoch: int) -> None:
    plan, labels = case
    batches = [[plan.lane_batch(epoch, s, lane) for s in range(plan.steps_per_epoch)] for lane in range(plan.lanes)]
    ids = np.concatenate([np.concatenate(lane) for lane in batches])
    assert len(np.unique(ids)) == len(ids) == plan.steps_per_epoch * plan.global_batch
    every = plan.ids(np.arange(plan.num_active))
    assert np.isin(ids, every).all()
    for lane, lane_ids in enumerate(batches):  # never from another lane
        start, stop = plan.home(lane, plan.lanes)
        positions = plan.positions(np.concatenate(lane_ids))
        assert ((start <= positions) & (positions < stop)).all()
    present = np.unique(labels[every])
    counts = np.array([(labels[ids] == label).sum() for label in present])
    deficit = plan.deficit(epoch)
    if not deficit:
        assert counts.max() - counts.min() <= 1
    else:
        assert set(deficit) <= set(present.tolist())
        # Counted again: what a fair deal of cards gives a lane of each class, less what the lane has.
        lacking: dict[int, int] = {}
        samples, number = plan.steps_per_epoch * plan.micro_batch, len(present)
        for lane in range(plan.lanes):
            dealt = [samples // number] * number
            for card in range(samples % number):
                dealt[((epoch * plan.lanes + lane) * (samples % number) + card) % number] += 1
            own = labels[every[slice(*plan.home(lane, plan.lanes))]]
            given = labels[np.concatenate(batches[lane])]
            for label, share in zip(present.tolist(), dealt, strict=True):
                if (missing := share - int((own == label).sum())) > 0:
                    lacking[label] = lacking.get(label, 0) + missing
                    assert (given == label).sum() == (own == label).sum(), "it gives all it has"
        assert deficit == lacking


def test_epochs_are_fresh_parts_that_come_to_hold_everything() -> None:
    labels = np.array([0] * 20 + [1] * 180)
    rng = np.random.default_rng(0)
    rng.shuffle(labels)
    plan = Plan([50] * 4, lanes=2, micro_batch=4, seed=0, balance=labels, epoch_samples=16)
    epochs = [np.concatenate([plan.batch(e, s) for s in range(plan.steps_per_epoch)]) for e in range(200)]
    assert all((labels[ids] == 0).sum() == 8 for ids in epochs)
    assert not np.array_equal(np.sort(epochs[0]), np.sort(epochs[1]))
    assert len(np.unique(np.concatenate(epochs))) == 200


def test_without_a_number_the_rarest_class_sets_it(photos: Manifest) -> None:
    plan = Plan(photos, lanes=2, micro_batch=3, seed=0, balance=True)
    rarest = np.bincount(photos.labels).min()
    assert plan.steps_per_epoch == 3 * rarest // 6
    labels = photos.labels[np.concatenate([plan.batch(0, s) for s in range(plan.steps_per_epoch)])]
    counts = np.bincount(labels)
    assert counts.max() - counts.min() <= 1 + sum(plan.deficit(0).values())


def test_the_order_of_a_balanced_plan_is_pinned() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1])
    plan = Plan([6, 6], lanes=2, micro_batch=2, seed=7, balance=labels, epoch_samples=8, shuffle_shards=1)
    assert [plan.batch(2, step).tolist() for step in range(2)] == [[2, 1, 6, 8], [5, 3, 7, 10]]


def test_mistakes_are_named() -> None:
    labels = np.array([0] * 9 + [1])
    with pytest.raises(InputError, match=r"data.balance = 11: an epoch of more samples than the 10"):
        Plan([10], lanes=1, micro_batch=2, seed=0, balance=labels, epoch_samples=11)
    with pytest.raises(InputError, match="2 samples are fewer than one global batch of 3"):
        Plan([10], lanes=1, micro_batch=3, seed=0, balance=labels)
