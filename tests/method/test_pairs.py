"""Two networks: who learns from what, held against lists sorted in numpy."""

import math

import numpy as np
import pytest
import torch
from references import log_softmax, softmax

from pipeline.method.alasca import Alasca, Trust
from pipeline.method.bank import SampleBank
from pipeline.method.elr import EarlyLearning
from pipeline.method.evidence import Evidence
from pipeline.method.losses import base_loss
from pipeline.method.objective import Objective
from pipeline.method.pairobjective import PairObjective
from pipeline.method.pairs import CoTeaching, CoTeachingPlus, Decoupling, Seen, forget_rate, small_losses
from shards.errors import InputError

BATCH, CLASSES = 20, 3
EVERY = torch.ones(BATCH, dtype=torch.bool)
PLACES = torch.arange(BATCH)
HALF_AND_WHOLE = (torch.bfloat16, torch.float32)
CHOICES = {
    "decoupling": Decoupling(2),
    "coteaching": CoTeaching(0.4, 10),
    "coteaching+": CoTeachingPlus(0.4, 10, 3),
}


def drawn(seed=0, classes=CLASSES, scale=2.0):
    """Labels, and logits of both networks that agree on about half of the samples."""
    rng = np.random.default_rng(seed)
    first = rng.normal(0, scale, (BATCH, classes))
    alike = rng.random((BATCH, 1)) < 0.5
    return rng.integers(0, classes, BATCH), np.stack([first, np.where(alike, 1.5 * first, -first)])


def chosen_by_hand(name, losses, said, valid, epoch):
    """Lists of samples for network 1 and for network 2."""
    candidates = [n for n in range(BATCH) if valid[n]]
    differ = [n for n in candidates if said[0][n] != said[1][n]]
    if name == "decoupling":
        return (candidates, candidates) if epoch < 2 else (differ, differ)
    among = candidates if name == "coteaching" or epoch < 3 else differ
    keep = 1 - 0.4 * min(epoch, 10) / 10
    size = math.ceil(round(keep * len(among), 9))
    by_first, by_second = (sorted(among, key=lambda n, own=own: own[n])[:size] for own in losses)
    return by_second, by_first


@pytest.mark.parametrize(
    ("epoch", "classes", "scale", "dtype"),
    [
        *((epoch, 3, 2.0, torch.float32) for epoch in (0, 1, 2, 3, 5, 10, 40)),
        *((10, classes, scale, dtype) for classes in (2, 1000) for scale in (2.0, 1e4) for dtype in HALF_AND_WHOLE),
    ],
)
@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("bad", [(), (1, 7, 8, 19)])
def test_values_gradients_and_parts(name, epoch, classes, scale, dtype, bad):
    y, z = drawn(epoch, classes, scale)
    logits = torch.tensor(z).to(dtype)
    z = logits.double().numpy()
    valid = ~np.isin(np.arange(BATCH), bad)
    losses, said = [-log_softmax(own)[np.arange(BATCH), y] for own in z], z.argmax(axis=2)
    kept = chosen_by_hand(name, losses, said, valid, epoch)
    differing = sum(said[0][n] != said[1][n] for n in range(BATCH) if valid[n])
    assert 4 <= differing <= valid.sum() - 4

    logits[:, ~valid] = float("nan")
    logits.requires_grad_()
    target = torch.where(torch.tensor(valid), torch.tensor(y), -1)
    found = PairObjective(Objective(), Objective(), CHOICES[name])(
        logits, [], target, PLACES, torch.tensor(valid), epoch
    )
    # Mean over the chosen, of which decoupling counts a tenth of the batch at least; less where not all are valid.
    least = 0.1 * valid.sum() if name == "decoupling" else 1
    means = [own[chosen].sum() / max(len(chosen), least) for own, chosen in zip(losses, kept, strict=True)]
    assert found.total.item() == pytest.approx(sum(means) * valid.sum() / BATCH, rel=1e-5)
    assert found.parts.keys() == {"loss/base", "selected", "agreement"}
    assert found.parts["loss/base"].item() == pytest.approx(sum(means) * valid.sum(), rel=1e-5)
    assert found.parts["selected"].item() == sum(len(chosen) for chosen in kept) / 2
    assert found.parts["agreement"].item() == valid.sum() - differing
    assert not any(value.requires_grad or value.dim() for value in found.parts.values())
    found.total.backward()
    rounding = 2**-8 if dtype == torch.bfloat16 else 0
    for own, gradient, chosen in zip(z, logits.grad, kept, strict=True):
        wanted = np.zeros((BATCH, classes))
        wanted[chosen] = (softmax(own) - np.eye(classes)[y])[chosen] / max(len(chosen), least) * valid.sum() / BATCH
        np.testing.assert_allclose(gradient.double(), wanted, rtol=rounding, atol=1e-6)


def test_the_other_networks_small_losses_are_learnt_from():
    losses = torch.tensor([[0.0, 1, 2, 3], [3.0, 2, 1, 0]])
    seen = Seen(losses, torch.tensor([True, False, True, True]), torch.ones(4, dtype=torch.bool), 9)
    first, second = CoTeaching(0.5, 5)(seen)
    assert (first.tolist(), second.tolist()) == ([False, False, True, True], [True, True, False, False])
    first, second = CoTeachingPlus(0.5, 5, 0)(seen)  # two of the three that they differ on
    assert (first.tolist(), second.tolist()) == ([False, False, True, True], [True, False, True, False])


@pytest.mark.parametrize(
    ("ramp", "epoch", "wanted"),
    [
        (10, 0, 0),
        (10, 1, 0.05),
        (10, 9, 0.45),
        (10, 10, 0.5),
        (10, 11, 0.5),
        (10, 500, 0.5),
        (0, 0, 0.5),
        (2.5, 2, 0.4),
    ],
)
def test_the_forget_rate_at_its_borders(ramp, epoch, wanted):
    assert forget_rate(0.5, ramp, epoch) == pytest.approx(wanted)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.2, 0.4, 0.55, 0.6, 0.8, 0.9, 1.0])
def test_as_many_as_the_share_says_rounded_up(keep):
    for n in range(21):
        among = torch.arange(20) < n
        wanted = math.ceil(round(keep * n, 9))  # 0.8 * 5 is 4, although (1 - 0.2) * 5 may not be
        assert small_losses(torch.rand(20), among, 1 - (1 - keep)).sum() == wanted
    assert small_losses(torch.rand(20), EVERY, keep).any() == (keep > 0)


def test_a_loss_that_is_no_number_is_the_largest_of_the_candidates():
    losses, among = torch.tensor([1.0, float("nan"), 2.0, 0.0]), torch.tensor([True, True, True, False])
    assert small_losses(losses, among, 2 / 3).tolist() == [True, False, True, False]
    assert small_losses(losses, among, 1.0).tolist() == [True, True, True, False]


def test_ties_infinities_and_few_candidates():
    # Of equals the first; a thousand of them, where a sort that is not stable would mix them.
    kept = small_losses(torch.ones(1000), torch.arange(1000) % 2 == 1, 0.1)
    assert kept.nonzero().flatten().tolist() == list(range(1, 100, 2))
    # What is no candidate is never chosen, be a candidate's loss infinite and the others' small or NaN.
    losses = torch.tensor([0.0, math.inf, math.nan, math.inf, -1.0])
    among = torch.tensor([False, True, False, True, False])
    assert small_losses(losses, among, 0.5).tolist() == [False, True, False, False, False]
    assert small_losses(losses, among, 1.0).tolist() == among.tolist()
    assert not small_losses(losses, torch.zeros(5, dtype=torch.bool), 1.0).any()
    # One valid sample is learnt from, whatever is to be left out.
    one = torch.arange(BATCH) == 4
    first, second = CoTeaching(0.9, 0)(Seen([torch.rand(BATCH)] * 2, EVERY, one, 3))
    assert first.tolist() == second.tolist() == one.tolist()


@pytest.mark.parametrize("name", ["decoupling", "coteaching+"])
def test_networks_that_agree_on_all_learn_nothing_from_the_base_loss(name):
    y, z = drawn()
    logits = torch.tensor(np.stack([z[0], 2 * z[0]]), dtype=torch.float32, requires_grad=True)
    found = PairObjective(Objective(), Objective(), CHOICES[name])(logits, [], torch.tensor(y), PLACES, EVERY, 9)
    found.total.backward()
    assert found.total == 0 and not logits.grad.any()
    assert (found.parts["selected"], found.parts["agreement"]) == (0, BATCH)


def test_no_valid_sample_at_all():
    for choice in CHOICES.values():
        logits = torch.full((2, BATCH, CLASSES), math.nan, requires_grad=True)
        found = PairObjective(Objective(), Objective(), choice)(logits, [], PLACES, PLACES, ~EVERY, 9)
        found.total.backward()
        assert found.total == 0 and not logits.grad.any()


def with_banks(base, device="cpu"):
    """Co-teaching under ALASCA, and under ELR if asked for, with a bank each."""
    objectives = []
    for _ in range(2):
        banks = {name: SampleBank(0, BATCH, CLASSES, device=device) for name in {base, "alasca"} - {"gce"}}
        loss = EarlyLearning(banks["elr"]) if base == "elr" else base_loss(base)
        trust = Trust(warmup_epochs=0, bank=banks["alasca"])
        objectives.append(Objective(loss, Alasca(trust), banks=banks, trust=trust))
    return PairObjective(*objectives, CoTeaching(0.4, 10))


@pytest.mark.parametrize("base", ["gce", "elr"])
def test_heads_and_banks_see_all_samples_of_their_own_network(base):
    y, z = drawn()
    _, heads = drawn(1)
    valid = EVERY.clone()
    valid[3] = False
    main, head = (torch.tensor(leaf, dtype=torch.float32, requires_grad=True) for leaf in (z, heads))
    pair = with_banks(base)
    found = pair(main, [head], torch.tensor(y), PLACES, valid, 9)
    found.total.backward()
    for n in range(2):
        alone = with_banks(base).objectives[0]
        own = head.detach()[n].requires_grad_()
        apart = alone(main.detach()[n], [own], torch.tensor(y), PLACES, valid, 9)
        apart.total.backward()
        torch.testing.assert_close(own.grad, head.grad[n])  # of the whole batch, with the average of its own main head
        for name, bank in alone.banks.items():
            assert torch.equal(pair.banks[f"network{n + 1}/{name}"].rows, bank.rows)
    assert not torch.equal(pair.banks["network1/alasca"].rows, pair.banks["network2/alasca"].rows)
    parts = {name: value.item() for name, value in found.parts.items()}
    assert found.total.item() * BATCH == pytest.approx(parts["loss/base"] + 2 * parts["loss/aux"], rel=1e-5)
    assert 0 < parts["confidence"] < 19 and parts["selected"] == math.ceil(0.64 * 19)


def test_state_is_kept_and_taken_back_of_both():
    y, z = drawn()
    main, pair = torch.tensor(z, dtype=torch.float32), with_banks("elr")
    pair(main, [main], torch.tensor(y), PLACES, EVERY, 9)
    pair.settle(torch.tensor(False))
    before = {name: bank.rows.clone() for name, bank in pair.banks.items()}
    assert before.keys() == {f"network{n}/{name}" for n in (1, 2) for name in ("alasca", "elr")}
    pair(2 * main, [main], torch.tensor(y), PLACES, EVERY, 9)
    pair.settle(torch.tensor(True))
    other = with_banks("elr")
    other.load_state_dict(pair.state_dict())
    for name, rows in before.items():
        assert rows.any() and torch.equal(rows, other.banks[name].rows)
    with pytest.raises(ValueError, match=r"holds nothing, this objective \['network1', 'network2'\]"):
        pair.load_state_dict({})
    with pytest.raises(ValueError, match=r"holds \['alasca'\], this objective \['alasca', 'elr'\]"):
        pair.load_state_dict(with_banks("gce").state_dict())
    shared = [Objective(banks={"elr": pair.banks["network1/elr"]}) for _ in range(2)]
    with pytest.raises(AssertionError, match="a bank each"):
        PairObjective(*shared, CoTeaching(0.4))


@pytest.mark.parametrize("name", CHOICES)
def test_nothing_waits_for_the_device(name):
    # Meta tensors have no values: whatever asks for one raises.
    pair = with_banks("elr", "meta")
    pair._choice = CHOICES[name]
    main, head = (torch.zeros(2, BATCH, CLASSES, device="meta", requires_grad=True) for _ in range(2))
    y, places, valid = (value.to("meta") for value in (PLACES, PLACES, EVERY))
    pair(main, [head], y, places, valid, 9).total.backward()
    pair.settle(valid.any())
    assert main.grad.shape == (2, BATCH, CLASSES)


def test_evidence_is_on_what_the_first_network_learns_from():
    y, z = drawn()
    clean = np.where(np.random.default_rng(2).random(BATCH) < 0.5, y, (y + 1) % CLASSES)
    first = Objective(evidence=Evidence(torch.tensor(clean, dtype=torch.int32), 0))
    pair = PairObjective(first, Objective(), CHOICES["coteaching"])
    found = pair(torch.tensor(z, dtype=torch.float32), [], torch.tensor(y), PLACES, EVERY, 10).shares
    losses = [-np.log(softmax(own)[np.arange(BATCH), y]) for own in z]
    kept, _ = chosen_by_hand("coteaching", losses, z.argmax(axis=2), EVERY, 10)
    right = clean == y
    assert found["evidence/precision"] == (right[kept].sum(), 12)  # label precision, as the papers call it
    assert found["evidence/recall"] == (right[kept].sum(), right.sum())
    assert found["evidence/true_top1"].part == (z[0].argmax(axis=1) == clean).sum()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CoTeaching(1.0), "forget_rate = 1.0 in [method.coteaching]"),
        (lambda: CoTeaching(0.2, -1), "ramp_epochs = -1 in [method.coteaching]"),
        (lambda: CoTeachingPlus(math.nan), "forget_rate = nan in [method.coteaching_plus]"),
        (lambda: CoTeachingPlus(0.2, 10, -3), "initial_epochs = -3"),
        (lambda: Decoupling(-0.5), "warmup_epochs = -0.5 in [method.decoupling]"),
    ],
)
def test_wrong_settings_are_named(make, words):
    with pytest.raises(InputError) as caught:
        make()
    assert words in str(caught.value) and "\n" not in str(caught.value)
