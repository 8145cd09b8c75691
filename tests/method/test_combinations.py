"""Whatever losses are combined: what is not valid, what is kept per sample, and that nothing waits for the device."""

import numpy as np
import pytest
import torch

from pipeline.method.alasca import AdaptiveBase, Alasca, Trust
from pipeline.method.bank import SampleBank
from pipeline.method.elr import EarlyLearning
from pipeline.method.forward import ForwardCorrection
from pipeline.method.losses import BASE_LOSSES, base_loss
from pipeline.method.objective import Objective
from pipeline.method.supervision import SelfDistillation, Supervision

BATCH, CLASSES, HEADS = 6, 5, 3
EVERY = torch.ones(BATCH, dtype=torch.bool)
PLACES = torch.arange(BATCH)
BASES = [*BASE_LOSSES, "adaptive", "forward", "elr"]
MATRIX = torch.full((CLASSES, CLASSES), 0.1) + 0.5 * torch.eye(CLASSES)


AUXES = ["alasca", "averaged", "current", "supervision", "distillation"]


def composed(base="ce", aux="alasca", device="cpu"):
    """Any loss of the heads under any base loss, each with the bank that it needs."""
    banks = {name: SampleBank(0, BATCH, CLASSES, device=device) for name in kept(base, aux)}
    confidence = aux if aux in ("averaged", "current") else "ema"
    trusts = base == "adaptive" or aux in ("alasca", "averaged", "current")
    trust = Trust(warmup_epochs=2, confidence=confidence, bank=banks.get("alasca")) if trusts else None
    if base == "adaptive":
        loss = AdaptiveBase(trust)
    elif base == "elr":
        loss = EarlyLearning(banks["elr"])
    elif base == "forward":
        loss = ForwardCorrection(MATRIX.to(device))
    else:
        loss = base_loss(base)
    heads = {
        "supervision": lambda: Supervision(2.0, 0.1),
        "distillation": SelfDistillation,
    }.get(aux, lambda: Alasca(trust))()
    return Objective(loss, heads, banks=banks, trust=trust)


def kept(base, aux):
    """Names of the banks."""
    averages = aux in ("alasca", "averaged") or (base == "adaptive" and aux != "current")
    return ({"alasca"} if averages else set()) | ({base} & {"elr"})


def drawn(seed=0):
    """Labels and logits of the main head and the others."""
    rng = np.random.default_rng(seed)
    leaves = rng.normal(0, 2, (1 + HEADS, BATCH, CLASSES))
    z0, *zs = (torch.tensor(z, dtype=torch.float32, requires_grad=True) for z in leaves)
    return torch.tensor(rng.integers(0, CLASSES, BATCH)), z0, zs


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 7.0])
@pytest.mark.parametrize("aux", AUXES)
@pytest.mark.parametrize("base", BASES)
def test_an_invalid_sample_adds_nothing(base, aux, garbage):
    y, z0, zs = drawn()
    valid = torch.tensor([True, True, False, True, False, True])
    # One and the same history, of which the second objective has the valid samples alone, in a batch of their own.
    objective, of_valid = composed(base, aux), composed(base, aux)
    _, *earlier = drawn(1)
    for each in (objective, of_valid):
        each(*earlier, y, PLACES, EVERY, 3)
    before = {name: bank.rows.clone() for name, bank in objective.banks.items()}
    with torch.no_grad():
        for leaf in (z0, *zs):
            leaf[~valid] = garbage
    target = torch.where(valid, y, -1)
    losses = objective(z0, zs, target, PLACES, valid, 3)
    losses.total.backward()
    own = [leaf.detach()[valid].requires_grad_(True) for leaf in (z0, *zs)]
    alone = of_valid(own[0], own[1:], target[valid], PLACES[valid], torch.ones(4, dtype=torch.bool), 3)
    alone.total.backward()
    # Divided by the nominal 6, not by the 4 that count.
    torch.testing.assert_close(losses.total, alone.total * 4 / 6)
    for name in losses.parts:
        torch.testing.assert_close(losses.parts[name], alone.parts[name])
    for leaf, wanted in zip((z0, *zs), own, strict=True):
        torch.testing.assert_close(leaf.grad[valid], wanted.grad * 4 / 6)
        assert not leaf.grad[~valid].any()
    assert set(objective.banks) == kept(base, aux)
    for name, bank in objective.banks.items():
        assert torch.equal(bank.rows[~valid], before[name][~valid])
        assert not torch.equal(bank.rows[valid], before[name][valid])
        assert torch.equal(bank.rows, of_valid.banks[name].rows)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("aux", AUXES)
def test_nothing_waits_for_the_device(base, aux):
    # Meta tensors have no values: whatever asks for one (.item(), if tensor:, a boolean index) raises.
    objective = composed(base, aux, "meta")
    z0, *zs = (torch.zeros(BATCH, CLASSES, device="meta", requires_grad=True) for _ in range(1 + HEADS))
    y, places, valid = (value.to("meta") for value in (PLACES, PLACES, EVERY))
    losses = objective(z0, zs, y, places, valid, 3)
    losses.total.backward()
    objective.settle(valid.any())
    assert z0.grad.shape == (BATCH, CLASSES)


def test_state_round_trip():
    objective, (y, z0, zs) = composed("elr"), drawn()
    objective(z0, zs, y, PLACES, EVERY, 5)
    other = composed("elr")
    other.load_state_dict(objective.state_dict())
    again = [o(z0, zs, y, PLACES, EVERY, 40).total.item() for o in (objective, other)]
    assert again[0] == again[1]
    plain = Objective()
    assert plain.state_dict() == {}
    plain.load_state_dict({})
    with pytest.raises(ValueError, match=r"holds \['alasca', 'elr'\], this objective nothing"):
        plain.load_state_dict(objective.state_dict())
    with pytest.raises(ValueError, match=r"holds nothing, this objective \['alasca', 'elr'\]"):
        objective.load_state_dict({})
    with pytest.raises(ValueError, match=r"\['alasca', 'elr'\], this objective \['alasca'\]"):
        composed().load_state_dict(objective.state_dict())


def test_a_skipped_step_is_taken_back_from_every_bank():
    objective, (y, z0, zs) = composed("elr"), drawn()
    halves = slice(0, 3), slice(3, 6)
    objective(z0, zs, y, PLACES, EVERY, 5)
    objective.settle(torch.tensor(False))
    before = {name: bank.rows.clone() for name, bank in objective.banks.items()}
    for skipped in (True, False):
        for part in halves:
            objective(2 * z0[part], [z[part] for z in zs], y[part], PLACES[part], EVERY[part], 5)
        objective.settle(torch.tensor(skipped))
        assert all(torch.equal(bank.rows, before[name]) == skipped for name, bank in objective.banks.items())
    assert set(before) == {"alasca", "elr"} and all(rows.any() for rows in before.values())
