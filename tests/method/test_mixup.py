"""How a micro-batch is mixed: by where it stands in the run alone, and never with what did not decode."""

import numpy as np
import pytest
import torch

from pipeline.method.mixup import Mix, draw, mixed_heads
from pipeline.method.outputs import Outputs
from pipeline.method.supervision import SelfDistillation, Supervision

EVERY = torch.ones(64, dtype=torch.bool)


def test_values_by_hand() -> None:
    mix = Mix(0.75, torch.tensor([1, 2, 0]))
    assert mix.of(torch.tensor([[0.0], [4.0], [8.0]])).tolist() == [[1.0], [5.0], [6.0]]
    assert mix.others(torch.tensor([5, 6, 7])).tolist() == [6, 7, 5]


def test_a_draw_follows_the_place_and_nothing_else() -> None:
    first = draw(EVERY, 1.0, (0, 5, 2), 0)
    torch.manual_seed(99)
    again = draw(EVERY, 1.0, (0, 5, 2), 0)
    assert first.share == again.share
    assert torch.equal(first.partner, again.partner)
    assert sorted(first.partner.tolist()) == list(range(64))
    others = [
        draw(EVERY, 1.0, place, network)
        for place, network in (((1, 5, 2), 0), ((0, 6, 2), 0), ((0, 5, 3), 0), ((0, 5, 2), 1))
    ]
    assert len({each.share for each in (first, *others)}) == 5
    assert not any(torch.equal(each.partner, first.partner) for each in others)


@pytest.mark.parametrize(("alpha", "variance"), [(1.0, 1 / 12), (4.0, 1 / 36)])
def test_shares_are_of_the_beta_distribution(alpha: float, variance: float) -> None:
    shares = np.array([draw(EVERY[:2], alpha, (0, step, 0), 0).share for step in range(4000)])
    assert 0.5 <= shares.min() < 0.51 and shares.max() > 0.85  # the larger half of a distribution around 0.5
    assert np.square(shares - 0.5).mean() == pytest.approx(variance, rel=0.1)


def test_what_did_not_decode_is_nobodys_partner() -> None:
    valid = EVERY.clone()
    valid[::3] = False
    for step in range(50):
        partner = draw(valid, 1.0, (0, step, 0), 0).partner
        stays = partner == torch.arange(64)
        assert (valid[partner] | stays).all()
        assert not stays.all()


@pytest.mark.parametrize("aux", [Supervision(0.3), Supervision(2.0, 0.1), SelfDistillation()])
def test_heads_learn_both_labels_in_their_shares(aux: Supervision | SelfDistillation) -> None:
    rng = np.random.default_rng(0)
    main, *heads = (torch.tensor(z, dtype=torch.float32) for z in rng.normal(0, 2, (3, 6, 5)))
    target, places, valid = torch.arange(6) % 5, torch.arange(6), torch.ones(6, dtype=torch.bool)
    mix = Mix(0.3, torch.tensor([3, 4, 5, 0, 1, 2]))
    found = mixed_heads(aux, Outputs.of(main, heads, target, places, valid, 2.0), mix, None)
    own = aux(Outputs.of(main, heads, target, places, valid, 2.0))
    other = aux(Outputs.of(main, heads, target[mix.partner], places, valid, 2.0))
    torch.testing.assert_close(found, 0.3 * own + 0.7 * other)
