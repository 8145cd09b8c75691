"""What holds for both penalties: finite differences, invalid samples, layouts, precision, nothing kept."""

import gc
import math
import weakref

import pytest
import torch
from torch.nn import functional as F
from watched import CLASSES, by_hand, drawn, everyone, gradients, har_by_hand, made

from pipeline.method.alasca import Alasca, Trust
from pipeline.method.bank import SampleBank
from pipeline.method.lipschitz import (
    HiddenGradients,
    InputJacobian,
    jacobian_penalty,
    random_directions,
)
from pipeline.method.losses import base_loss
from pipeline.method.objective import Objective
from pipeline.model.backbone import build


@pytest.mark.parametrize("kind", ["hidden", "jacobian"])
@pytest.mark.parametrize("name", ["tiny", "resnet20"])
def test_gradient_of_the_penalty_by_finite_differences(name, kind):
    if name == "tiny":
        net, (x, y) = made(), drawn()
    else:
        torch.manual_seed(0)
        net, (x, y) = build("resnet20", num_classes=CLASSES, heads="light").double(), drawn(batch=3, size=8)
    penalty = HiddenGradients(net) if kind == "hidden" else InputJacobian(net, n_proj=2, seed=3)
    places, every = everyone(len(x))

    def value():
        return penalty(net(x)[0], y, places, every, 0).sum()

    slopes = gradients(value(), net)
    parameters = dict(net.named_parameters())
    moved = {key: slope for (key, _), slope in zip(parameters.items(), slopes, strict=True)}
    generator = torch.Generator().manual_seed(1)
    # All weights at once along three random directions, then single layers: first, inner, last; scale of a norm.
    groups = [list(parameters)] * 3 + [["conv1.weight"], ["layer2.0.conv2.weight"], ["layer1.0.bn1.weight"]]
    for group in groups:
        along = {key: torch.randn(parameters[key].shape, generator=generator, dtype=torch.float64) for key in group}
        length = math.sqrt(sum(float(d.square().sum()) for d in along.values()))
        found, h = [], 1e-7
        for sign in (1, -1):
            with torch.no_grad():
                for key, d in along.items():
                    parameters[key] += sign * h * d / length
            found.append(value().item())
            with torch.no_grad():
                for key, d in along.items():
                    parameters[key] -= sign * h * d / length
        expected = sum(float((moved[key] * d).sum()) for key, d in along.items()) / length
        assert expected != 0
        assert (found[0] - found[1]) / (2 * h) == pytest.approx(expected, rel=1e-4), group


def attached(kind, net, **options):
    return HiddenGradients(net, **options) if kind == "hidden" else InputJacobian(net, **options)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["hidden", "jacobian"])
def test_an_invalid_sample_adds_nothing(kind, garbage):
    net, (x, y) = made(), drawn()
    objective = Objective(penalty=attached(kind, net), penalty_weight=0.3)
    places, _ = everyone(5)
    valid = torch.tensor([True, False, True, True, False])
    main, _ = net(x)
    losses = objective(torch.where(valid.unsqueeze(1), main, garbage), [], torch.where(valid, y, -1), places, valid, 4)

    leaf = x.clone().requires_grad_()
    logits, hidden = by_hand(net, leaf)
    base = F.cross_entropy(logits[valid], y[valid], reduction="sum")
    if kind == "hidden":
        found = torch.autograd.grad(base, hidden, create_graph=True)
        each = sum(g.flatten(1).norm(dim=1) for g in found)
    else:
        v = random_directions(0, 4, places, 1, CLASSES)[0]
        (g,) = torch.autograd.grad((logits * v)[valid].sum(), leaf, create_graph=True)
        each = CLASSES / 2 * g.flatten(1).square().sum(dim=1)
    # Divided by the nominal 5, not by the 3 that count.
    expected = (base + 0.3 * each[valid].sum()) / 5
    torch.testing.assert_close(losses.total.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(losses.parts["loss/penalty"].double(), each[valid].sum().detach(), rtol=1e-6, atol=0)
    for ours, theirs in zip(gradients(losses.total, net), gradients(expected, net), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # the base loss is formed in float32


@pytest.mark.parametrize("kind", ["hidden", "jacobian"])
def test_no_valid_sample_at_all(kind):
    net, (x, y) = made(torch.float32), drawn(dtype=torch.float32)
    losses = Objective(penalty=attached(kind, net), penalty_weight=0.3)(*net(x), y, everyone(5)[0], y < 0, 0)
    losses.total.backward()
    assert losses.total.item() == 0.0
    assert not any(p.grad.any() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", ["hidden", "jacobian"])
def test_accumulation_is_the_mean_over_micro_batches(kind):
    net = made(torch.float32)
    objective = Objective(penalty=attached(kind, net), penalty_weight=0.05)
    batches = [drawn(dtype=torch.float32, seed=seed) for seed in (0, 1)]
    for x, y in batches:
        (objective(*net(x), y, *everyone(5), 0).total / 2).backward()
    reference, expected = made(), 0
    for x, y in batches:
        leaf = x.double().requires_grad_()
        logits, _ = by_hand(reference, leaf)
        if kind == "hidden":
            each = har_by_hand(reference, leaf, y)
        else:
            each = jacobian_penalty(logits, leaf, random_directions(0, 0, torch.arange(5), 1, CLASSES))
        expected = expected + (F.cross_entropy(logits, y) + 0.05 * each.mean()) / 2
    wanted = gradients(expected, reference)
    for ours, theirs in zip([p.grad for p in net.parameters()], wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["hidden", "jacobian"])
def test_composes_with_adaptive_smoothing(kind):
    # The auxiliary part is added as without a penalty, and the heads' layers get nothing from the penalty.
    torch.manual_seed(0)
    net, (x, y) = build("resnet20", num_classes=CLASSES), drawn(size=8, dtype=torch.float32)
    penalty, found = attached(kind, net), {}
    for weight in (0.0, 0.5):
        trust = Trust(bank=SampleBank(0, 5, CLASSES))
        objective = Objective(base_loss("gce", {"q": 0.5}), Alasca(trust), penalty, weight, trust=trust)
        net.zero_grad()
        losses = objective(*net(x), y, *everyone(5), 3)
        losses.total.backward()
        head = torch.cat([p.grad.flatten() for p in net.heads.parameters()])
        found[weight] = losses, head, net.conv1.weight.grad
    (without, head, _), (with_it, same_head, _) = found[0.0], found[0.5]
    assert set(with_it.parts) == {"loss/base", "loss/aux", "confidence", "loss/penalty"}
    torch.testing.assert_close(with_it.total, without.total + 0.5 * with_it.parts["loss/penalty"] / 5)
    torch.testing.assert_close(head, same_head)
    assert not torch.allclose(found[0.0][2], found[0.5][2])


def resnet20_values(kind, dtype, layout=torch.contiguous_format, autocast=False):
    """Penalties of a batch of 8 and the gradient of their sum."""
    torch.manual_seed(0)
    net = build("resnet20", num_classes=CLASSES, heads="none").to(dtype).to(memory_format=layout)
    x, y = drawn(batch=8, size=16)
    penalty = attached(kind, net)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        main, _ = net(x.to(dtype).contiguous(memory_format=layout))
    values = penalty(main, y, *everyone(8), 0)
    return values.detach(), torch.cat([g.flatten() for g in gradients(values.sum(), net)])


@pytest.mark.parametrize("kind", ["hidden", "jacobian"])
def test_layout_changes_no_numbers(kind):
    # In float64: in float32, a ReLU whose input lies within rounding of zero flips, and with it part of a gradient.
    exact, slope = resnet20_values(kind, torch.float64)
    values, other = resnet20_values(kind, torch.float64, torch.channels_last)
    torch.testing.assert_close(values, exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(other, slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["hidden", "jacobian"])
def test_bfloat16_is_close(kind):
    exact, slope = resnet20_values(kind, torch.float32)
    values, other = resnet20_values(kind, torch.float32, torch.channels_last, autocast=True)
    assert values.dtype == other.dtype == torch.float32
    # Eight bits a product, through twenty layers forth and back, and the flips: off by 3 % and 8 %, cosine 0.97 and
    # 0.91. tests/train/test_penalty_engine.py shows that what plain torch computes in bfloat16 is no nearer.
    torch.testing.assert_close(values, exact, rtol=0.15, atol=0)
    assert F.cosine_similarity(other, slope, dim=0) > 0.85


@pytest.mark.parametrize("kind", ["hidden", "jacobian"])
def test_nothing_is_kept(kind):
    net, (x, y) = made(torch.float32), drawn(dtype=torch.float32)
    objective, kept = Objective(penalty=attached(kind, net), penalty_weight=0.1), []
    # The input as the network gets it, and a map that the graph holds.
    net.conv1.register_forward_pre_hook(lambda module, args: kept.append(weakref.ref(args[0])))
    net.layer1[0].conv2.register_forward_hook(lambda module, args, output: kept.append(weakref.ref(output)))

    def alive():
        gc.collect()
        return [ref() is not None for ref in kept]

    losses = objective(*net(x.clone()), y, *everyone(5), 0)
    assert alive() == [True, True]
    losses.total.backward()
    del losses  # the parts it holds are without a graph, but `total` is not
    assert alive() == [False, False]
    net(x.clone())  # a forward that nobody used waits for its objective, until the next one
    assert any(alive())
    net.eval()
    net(x.clone())
    assert not any(alive())


@pytest.mark.parametrize("kind", ["hidden", "jacobian"])
def test_each_forward_is_used_once(kind):
    net, (x, y) = made(), drawn()
    penalty = attached(kind, net)
    main, _ = net(x)
    penalty(main, y, *everyone(5), 0)
    with pytest.raises(AssertionError, match="comes first"):
        penalty(main, y, *everyone(5), 0)


@pytest.mark.parametrize("kind", ["hidden", "jacobian"])
def test_only_training_is_watched(kind):
    net, (x, y) = made(), drawn()
    penalty = attached(kind, net)
    with torch.no_grad():
        net(x)  # in training mode
    with pytest.raises(AssertionError, match="comes first"):
        penalty(net.eval()(x)[0], y, *everyone(5), 0)
    main, _ = net.train()(x)
    net.eval()(x + 1)  # does not stand in for the forward in training
    with pytest.raises(AssertionError, match="comes first"):
        penalty(main, y, *everyone(5), 0)


@pytest.mark.parametrize("kind", ["hidden", "jacobian"])
def test_nothing_waits_for_the_device(kind):
    # Meta tensors have no values: whatever asks for one raises.
    with torch.device("meta"):
        net = made(torch.float32)
        options = {"class_weights": torch.ones(CLASSES)} if kind == "hidden" else {"n_proj": 2}
        objective = Objective(penalty=attached(kind, net, **options), penalty_weight=0.1)
        y, places, valid = torch.zeros(5, dtype=torch.int64), torch.arange(5), torch.ones(5, dtype=torch.bool)
        objective(*net(torch.zeros(5, 3, 6, 6)), y, places, valid, 0).total.backward()
    assert net.conv1.weight.grad.shape == (4, 3, 3, 3)
