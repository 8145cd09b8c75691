"""Row "total loss" of docs/method.md, and what each part may and may not touch."""

import math

import numpy as np
import pytest
import torch

from pipeline.method.alasca import Alasca, Trust
from pipeline.method.bank import SampleBank
from pipeline.method.losses import base_loss
from pipeline.method.objective import Objective
from shards.errors import InputError

BATCH, CLASSES, HEADS = 6, 5, 3


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def drawn(seed=0, dtype=torch.float32):
    rng = np.random.default_rng(seed)
    main, *aux = rng.normal(0, 2, (1 + HEADS, BATCH, CLASSES))
    leaves = [torch.tensor(z, dtype=dtype, requires_grad=True) for z in (main, *aux)]
    return main, aux, rng.integers(0, CLASSES, BATCH), leaves[0], leaves[1:]


def alasca(base="ce", **settings):
    weight = settings.pop("aux_weight", 2.0)
    trust = Trust(**settings, bank=SampleBank(0, BATCH, CLASSES))
    return Objective(base_loss(base), Alasca(trust, weight), trust=trust)


EVERY = torch.ones(BATCH, dtype=torch.bool)
PLACES = torch.arange(BATCH)


def expected(main, aux, y, average, share, valid, base="ce"):
    """Value, parts and gradients, sample by sample, in float64."""
    base_sum = aux_sum = confidence_sum = 0.0
    gradients = [np.zeros((BATCH, CLASSES)) for _ in range(1 + len(aux))]
    for n in range(BATCH):
        if not valid[n]:
            continue
        p = softmax(main[n : n + 1])[0]
        own = np.eye(CLASSES)[y[n]]
        if base == "ce":
            base_sum += -math.log(p[y[n]])
            gradients[0][n] = (p - own) / BATCH
        else:  # gce, q = 0.7: d/dz = p_y^q (p - own)
            base_sum += (1 - p[y[n]] ** 0.7) / 0.7
            gradients[0][n] = p[y[n]] ** 0.7 * (p - own) / BATCH
        alpha = share * softmax(average[n : n + 1] / 0.333)[0, y[n]] + 1 - share
        confidence_sum += alpha
        target = np.where(own > 0, alpha, (1 - alpha) / (CLASSES - 1))
        for m, z in enumerate(aux):
            p = softmax(z[n : n + 1])[0]
            aux_sum += -(target * np.log(p)).sum()
            gradients[1 + m][n] = 2.0 * (p - target) / BATCH
    return (base_sum + 2.0 * aux_sum) / BATCH, base_sum, aux_sum, confidence_sum, gradients


@pytest.mark.parametrize("base", ["ce", "gce"])
@pytest.mark.parametrize(("epoch", "share"), [(0, 0.0), (6, 0.2), (30, 1.0), (77, 1.0)])
def test_total_parts_and_gradients(base, epoch, share):
    main, aux, y, z0, zs = drawn()
    losses = alasca(base)(z0, zs, torch.tensor(y), PLACES, EVERY, epoch)
    total, base_sum, aux_sum, confidence, gradients = expected(main, aux, y, 0.3 * main, share, EVERY, base)
    assert losses.total.item() == pytest.approx(total, rel=1e-5)
    assert losses.total.dim() == 0
    assert set(losses.parts) == {"loss/base", "loss/aux", "confidence"}
    for name, wanted in (("loss/base", base_sum), ("loss/aux", aux_sum), ("confidence", confidence)):
        assert losses.parts[name].item() == pytest.approx(wanted, rel=1e-5)
        assert losses.parts[name].dim() == 0
        assert not losses.parts[name].requires_grad
    losses.total.backward()
    # The main head's is that of the base loss alone; each head's carries lambda = 2.
    for leaf, wanted in zip((z0, *zs), gradients, strict=True):
        np.testing.assert_allclose(leaf.grad.numpy(), wanted, atol=1e-6)


def test_second_visit_uses_the_average():
    objective = alasca(warmup_epochs=0)
    main, _, _, z0, zs = drawn(0)
    objective(z0, zs, torch.zeros(BATCH, dtype=torch.int64), PLACES, EVERY, 0)
    again, aux, y, z0, zs = drawn(1)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    losses = objective(z0, zs, torch.tensor(y), order, EVERY, 0)
    average = 0.7 * 0.3 * main[order.numpy()] + 0.3 * again
    total, *_ = expected(again, aux, y, average, 1.0, EVERY)
    assert losses.total.item() == pytest.approx(total, rel=1e-5)


def test_without_aux_only_the_base_loss_remains():
    main, _, y, z0, _ = drawn()
    losses = Objective()(z0, [], torch.tensor(y), PLACES, EVERY, 0)
    _, base_sum, *_ = expected(main, [], y, main, 1.0, EVERY)
    assert losses.total.item() == pytest.approx(base_sum / BATCH, rel=1e-6)
    assert set(losses.parts) == {"loss/base"}


def test_weight_and_options_are_used():
    main, _, y, z0, zs = drawn()
    aux = Alasca(Trust(bank=SampleBank(0, BATCH, CLASSES)), aux_weight=0.25)
    losses = Objective(base_loss("gce", {"q": 0.5}), aux)(z0, zs, torch.tensor(y), PLACES, EVERY, 0)
    own = softmax(main)[np.arange(BATCH), y]
    base_sum = ((1 - own**0.5) / 0.5).sum()
    assert losses.parts["loss/base"].item() == pytest.approx(base_sum, rel=1e-5)
    assert losses.total.item() == pytest.approx((base_sum + 0.25 * losses.parts["loss/aux"].item()) / BATCH, rel=1e-5)


def test_no_valid_sample_at_all():
    _, _, y, z0, zs = drawn()
    losses = alasca()(z0, zs, torch.tensor(y), PLACES, ~EVERY, 3)
    losses.total.backward()
    assert losses.total.item() == 0.0
    assert not any(leaf.grad.any() for leaf in (z0, *zs))


def test_micro_batches_add_up():
    # Gradient accumulation over two halves is the whole, halved twice: every sum is divided by its own nominal size.
    _, _, y, z0, zs = drawn()
    y = torch.tensor(y)
    whole = alasca(warmup_epochs=0)(z0, zs, y, PLACES, EVERY, 0)
    objective = alasca(warmup_epochs=0)
    halves = [
        objective(z0[part], [z[part] for z in zs], y[part], PLACES[part], EVERY[part], 0)
        for part in (slice(0, 3), slice(3, 6))
    ]
    torch.testing.assert_close(sum(half.total for half in halves) / 2, whole.total)


def test_a_penalty_is_weighed_and_summed_over_valid_samples():
    # One that can be computed by hand: n + 1 times the label's own logit, told everything that it may ask for.
    main, _, y, z0, _ = drawn()
    valid, told = torch.tensor([True, False, True, True, True, True]), []

    def penalty(logits, target, positions, kept, epoch):
        told.extend((positions, kept, epoch))
        each = logits.gather(1, target.unsqueeze(1)).squeeze(1) * torch.arange(1, BATCH + 1)
        return torch.where(kept, each, math.nan)

    losses = Objective(penalty=penalty, penalty_weight=0.25)(z0, [], torch.tensor(y), PLACES, valid, 9)
    assert told == [PLACES, valid, 9]
    without, base_sum, _, _, gradients = expected(main, [], y, main, 1.0, valid)
    penalties = [(n + 1) * main[n, y[n]] for n in range(BATCH) if valid[n]]
    assert set(losses.parts) == {"loss/base", "loss/penalty"}
    assert losses.parts["loss/penalty"].item() == pytest.approx(sum(penalties), rel=1e-5)
    assert losses.parts["loss/base"].item() == pytest.approx(base_sum, rel=1e-5)
    assert not losses.parts["loss/penalty"].requires_grad
    assert losses.total.item() == pytest.approx(without + 0.25 * sum(penalties) / BATCH, rel=1e-5)
    assert losses.total.dim() == 0 and losses.total.dtype == torch.float32
    losses.total.backward()
    for n in range(BATCH):
        if valid[n]:
            gradients[0][n, y[n]] += 0.25 * (n + 1) / BATCH
    np.testing.assert_allclose(z0.grad.numpy(), gradients[0], atol=1e-6)


def test_the_clothing1m_variant_needs_no_bank():
    main, aux, y, z0, zs = drawn()
    trust = Trust(confidence="current", warmup_epochs=3)
    objective = Objective(aux=Alasca(trust), trust=trust)
    losses = objective(z0, zs, torch.tensor(y), PLACES, EVERY, 3)
    # alpha = softmax(z0)[y]: the reference divides by 0.333, so undo that.
    total, _, _, confidence, gradients = expected(main, aux, y, 0.333 * main, 1.0, EVERY)
    assert losses.total.item() == pytest.approx(total, rel=1e-5)
    assert losses.parts["confidence"].item() == pytest.approx(confidence, rel=1e-5)
    losses.total.backward()
    np.testing.assert_allclose(z0.grad.numpy(), gradients[0], atol=1e-6)


def test_bfloat16_logits():
    main, aux, y, z0, zs = drawn(dtype=torch.bfloat16)
    losses = alasca()(z0, zs, torch.tensor(y), PLACES, EVERY, 30)
    total, *_ = expected(main, aux, y, 0.3 * main, 1.0, EVERY)
    assert losses.total.dtype == torch.float32
    assert losses.total.item() == pytest.approx(total, rel=0.02)
    losses.total.backward()
    assert z0.grad.dtype == torch.bfloat16


def test_heads_and_aux_go_together():
    _, _, y, z0, zs = drawn()
    with pytest.raises(InputError, match="method.aux needs heads"):
        alasca()(z0, [], torch.tensor(y), PLACES, EVERY, 0)
    with pytest.raises(InputError, match="trains them"):
        Objective()(z0, zs, torch.tensor(y), PLACES, EVERY, 0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: base_loss("gec"), ['base = "gec"', 'did you mean "gce"?']),
        (lambda: base_loss("gce", {"quantile": 1.0}), ["quantile in [method.gce]", "known: q"]),
        (lambda: base_loss("sce", {"alpa": 1.0}), ['did you mean "alpha"?']),
        (lambda: base_loss("ce", {"q": 1.0}), ["it has no options"]),
        (lambda: base_loss("gce", {"q": 2.0}), ["q = 2.0"]),
        (lambda: Trust(confidence="emma"), ['confidence = "emma"']),
        (lambda: Alasca(Trust(confidence="current"), aux_weight=-1.0), ["aux_weight = -1.0"]),
        (lambda: Trust(momentum=2.0), ["momentum = 2.0"]),
        (lambda: Objective(penalty_weight=-0.1), ["penalty_weight = -0.1 in [method]"]),
        (lambda: Objective(penalty_weight=math.nan), ["penalty_weight = nan"]),
    ],
)
def test_wrong_settings_are_named(make, words):
    with pytest.raises(InputError) as caught:
        make()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
