import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.method.bank import SampleBank


def index(*positions):
    return torch.tensor(positions, dtype=torch.int64)


def test_starts_at_zeros_and_updates_before_it_reads():
    bank = SampleBank(10, 14, 2)
    assert bank.rows.shape == (4, 2)
    assert not bank.rows.any()
    rows = bank.update(index(12, 10), torch.tensor([[10.0, -20.0], [1.0, 2.0]]), 0.7)
    # By hand: 0.7 * 0 + 0.3 * value.
    np.testing.assert_allclose(rows.numpy(), [[3.0, -6.0], [0.3, 0.6]], rtol=1e-6)
    np.testing.assert_allclose(bank.rows.numpy(), [[0.3, 0.6], [0, 0], [3.0, -6.0], [0, 0]], rtol=1e-6)
    rows = bank.update(index(12), torch.tensor([[0.0, 100.0]]), 0.7)
    np.testing.assert_allclose(rows.numpy(), [[2.1, 25.8]], rtol=1e-6)


def test_reading_moves_nothing():
    bank = SampleBank(10, 14, 2, dtype=torch.bfloat16)
    bank.update(index(12, 10), torch.tensor([[3.0, -6.0], [1.0, 2.0]]), 0.0)
    before = bank.rows.clone()
    read = bank.read(index(10, 11, 12, 12))
    assert read.dtype == torch.float32 and read.tolist() == [[1, 2], [0, 0], [3, -6], [3, -6]]
    assert torch.equal(bank.rows, before)
    bank.settle(torch.tensor(True))
    assert not bank.rows.any()


def test_follows_the_recurrence_over_many_steps():
    rng = np.random.default_rng(0)
    bank, wanted = SampleBank(100, 120, 3), np.zeros((20, 3))
    for _ in range(50):
        where, values = rng.permutation(20)[:6], rng.normal(size=(6, 3))
        rows = bank.update(torch.tensor(where + 100), torch.tensor(values), 0.9)
        for place, value in zip(where, values, strict=True):
            wanted[place] = 0.9 * wanted[place] + 0.1 * value
        np.testing.assert_allclose(rows.numpy(), wanted[where], atol=1e-6)
    np.testing.assert_allclose(bank.rows.numpy(), wanted, atol=1e-6)


def test_invalid_rows_stay_untouched_and_are_returned_as_they_stand():
    bank = SampleBank(0, 3, 2)
    bank.update(index(0, 1), torch.ones(2, 2), 0.5)
    before = bank.rows.clone()
    values = torch.tensor([[8.0, 8.0], [float("nan"), float("inf")]])
    rows = bank.update(index(0, 1), values, 0.5, torch.tensor([True, False]))
    assert rows.tolist() == [[4.25, 4.25], [0.5, 0.5]]
    assert torch.equal(bank.rows[1:], before[1:])


def test_momentum_zero_keeps_the_newest():
    bank = SampleBank(0, 1, 2)
    bank.update(index(0), torch.tensor([[5.0, 6.0]]), 0.0)
    assert bank.update(index(0), torch.tensor([[1.0, 2.0]]), 0.0).tolist() == [[1.0, 2.0]]


def test_half_precision_is_only_storage():
    bank, values = SampleBank(0, 2, 3, dtype=torch.bfloat16), torch.randn(2, 3)
    rows = bank.update(index(0, 1), values, 0.7)
    assert rows.dtype == torch.float32
    assert bank.rows.dtype == torch.bfloat16
    assert torch.equal(rows, ((1.0 - 0.7) * values).bfloat16().float())
    assert torch.equal(rows, bank.rows.float())
    again = bank.update(index(0, 1), values.bfloat16(), 0.7)
    assert torch.equal(again, (0.7 * rows + (1.0 - 0.7) * values.bfloat16().float()).bfloat16().float())


def test_extreme_values_stay_finite_in_half_precision():
    bank = SampleBank(0, 1, 3, torch.float16)
    for _ in range(3):
        stored = bank.update(index(0), torch.tensor([[3e5, -3e5, 0.0]]), 0.7)
    assert stored.tolist() == [[65504.0, -65504.0, 0.0]]
    # What was infinite stays so: DivideMix leaves such a loss out of its mixture.
    endless = torch.tensor([[float("inf"), -float("inf"), 1.0]])
    for dtype in (torch.float16, torch.float32):
        assert SampleBank(0, 1, 3, dtype=dtype).update(index(0), endless, 0.0).tolist() == endless.tolist()


def test_values_are_detached_and_the_result_is_not_a_view():
    bank, values = SampleBank(0, 2, 3), torch.randn(2, 3, requires_grad=True)
    rows = bank.update(index(0, 1), values, 0.7)
    assert not rows.requires_grad
    kept = bank.rows.clone()
    rows.zero_()
    assert torch.equal(bank.rows, kept)


@pytest.mark.parametrize("wrong", [4, 9, -1])
def test_positions_outside_the_range(wrong):
    bank = SampleBank(5, 9, 1)
    with pytest.raises(ValueError, match=rf"position {wrong} is outside this bank's range \[5, 9\)"):
        bank.update(index(5, wrong), torch.ones(2, 1), 0.5)
    assert not bank.rows.any()


def test_state_round_trip():
    bank = SampleBank(5, 9, 2)
    bank.update(index(6, 8), torch.randn(2, 2), 0.7)
    state = bank.state_dict()
    assert (state["start"], state["stop"]) == (5, 9)
    other = SampleBank(5, 9, 2)
    other.load_state_dict(state)
    assert torch.equal(other.rows, bank.rows)
    assert other.rows.data_ptr() != bank.rows.data_ptr()


@pytest.mark.parametrize("other", [(1, 4, 2), (10, 12, 2), (9, 12, 2), (5, 9, 3)])
def test_state_of_other_samples_or_another_width(other):
    with pytest.raises(ValueError, match="does not fit"):
        SampleBank(*other).load_state_dict(SampleBank(5, 9, 2).state_dict())


@given(st.lists(st.integers(0, 40), max_size=6), st.lists(st.integers(0, 40), max_size=6))
def test_other_ranks_cut_the_rows_anew(before, after):
    """A bank for each rank, before and after, over the same positions; a rank may have none."""
    rows = torch.randn(40, 3)
    states = []
    for start, stop in itertools.pairwise([0, *sorted(before), 40]):
        bank = SampleBank(start, stop, 3)
        bank.rows.copy_(rows[start:stop])
        states.append(bank.state_dict())
    for start, stop in itertools.pairwise([0, *sorted(after), 40]):
        bank = SampleBank(start, stop, 3)
        for state in states:
            if state["start"] < stop and start < state["stop"]:
                bank.load_state_dict(state)
        assert torch.equal(bank.rows, rows[start:stop])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_skipped_step_is_taken_back_and_another_is_not(dtype):
    bank = SampleBank(10, 16, 2, dtype=dtype)
    skipped, counts = torch.tensor(True), torch.tensor(False)
    bank.update(index(10, 11, 12, 13, 14), torch.randn(5, 2), 0.7)
    bank.settle(counts)
    before = bank.rows.clone()
    bank.update(index(12, 10), torch.tensor([[float("nan"), 1.0], [1e9, -float("inf")]]), 0.7)
    bank.update(index(15, 11), torch.ones(2, 2), 0.7, torch.tensor([False, True]))
    assert not torch.equal(bank.rows, before)
    bank.settle(skipped)
    assert torch.equal(bank.rows, before)
    bank.settle(skipped)  # nothing happened since
    assert torch.equal(bank.rows, before)
    rows = bank.update(index(12, 15), torch.ones(2, 2), 0.7)
    bank.settle(counts)
    assert torch.equal(bank.rows[[2, 5]].float(), rows)
    assert torch.equal(bank.rows[[0, 1, 3, 4]], before[[0, 1, 3, 4]])
