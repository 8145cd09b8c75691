"""Penalties against BatchNorm written out, whole Jacobians and finite differences, in float64."""

import gc
import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from pipeline.method.alasca import Alasca, Trust
from pipeline.method.bank import SampleBank
from pipeline.method.lipschitz import (
    HiddenGradients,
    InputJacobian,
    class_weights,
    hidden_gradient_penalty,
    jacobian_penalty,
    random_directions,
)
from pipeline.method.losses import base_loss
from pipeline.method.objective import Objective
from pipeline.model.backbone import build
from shards.errors import InputError

CLASSES = 4


class Net(nn.Module):
    """A stem, one block with an identity and one with a convolution as shortcut; their ReLUs work in place."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(BasicBlock(4, 4))
        shortcut = nn.Sequential(nn.Conv2d(4, 6, 1, stride=2, bias=False), nn.BatchNorm2d(6))
        self.layer2 = nn.Sequential(BasicBlock(4, 6, stride=2, downsample=shortcut))
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x):
        x = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        return self.fc(x.mean(dim=(2, 3))), []


def made(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    net = Net().to(dtype)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):  # scales of 1 and shifts of 0 would hide what is done with them
            nn.init.normal_(layer.weight, 1.0, 0.5)
            nn.init.normal_(layer.bias, 0.0, 0.5)
    return net


def drawn(batch=5, size=6, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, size, size, generator=generator, dtype=dtype)
    return images, torch.randint(0, CLASSES, (batch,), generator=generator)


def everyone(batch):
    return torch.arange(batch), torch.ones(batch, dtype=torch.bool)


def by_hand(net, x):
    """Logits, and what each BatchNorm of the blocks gives before its scale and shift, as a node of the graph."""
    hidden = []

    def norm(layer, x):
        centred = x - x.mean(dim=(0, 2, 3), keepdim=True)
        h = centred / (centred.square().mean(dim=(0, 2, 3), keepdim=True) + layer.eps).sqrt()
        hidden.append(h)
        return h * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)

    x = norm(net.bn1, net.conv1(x)).clamp(min=0)
    hidden.clear()
    for block in (net.layer1[0], net.layer2[0]):
        y = norm(block.bn2, block.conv2(norm(block.bn1, block.conv1(x)).clamp(min=0)))
        x = (y + (x if block.downsample is None else norm(block.downsample[1], block.downsample[0](x)))).clamp(min=0)
    return net.fc(x.mean(dim=(2, 3))), hidden


def har_by_hand(net, x, y, reduction="sum"):
    """r, [B], sample by sample."""
    logits, hidden = by_hand(net, x)
    gradients = torch.autograd.grad(F.cross_entropy(logits, y, reduction=reduction), hidden, create_graph=True)
    assert len(gradients) == 5
    return torch.stack([sum((g[n] ** 2).sum().sqrt() for g in gradients) for n in range(len(x))])


def gradients(value, net):
    found = torch.autograd.grad(value, list(net.parameters()), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(net.parameters(), found, strict=True)]


def test_hidden_gradients_and_their_gradient_are_those_of_batchnorm_written_out():
    net, (x, y) = made(), drawn()
    penalty = HiddenGradients(net)
    places, every = everyone(5)
    r = penalty(net(x)[0], y, places, every, 0)
    expected = har_by_hand(net, x, y)
    assert r.shape == (5,) and r.dtype == torch.float64
    torch.testing.assert_close(r, expected, rtol=1e-10, atol=0)
    weights = torch.rand(5, dtype=torch.float64)
    for ours, theirs in zip(gradients(r @ weights, net), gradients(expected @ weights, net), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_hidden_gradient_penalty_by_arithmetic():
    # loss = a h^2 / 2 at three places, so g = a h: r is |a| times the norms, summed over two layers.
    h = [torch.tensor([[[[3.0, 4.0]]], [[[0.0, 0.0]]]]), torch.tensor([[[[5.0]], [[12.0]]], [[[1.0]], [[0.0]]]])]
    a = torch.tensor(2.0, requires_grad=True)
    for layer in h:
        layer.requires_grad_()
    loss = a * sum(layer.square().sum() for layer in h) / 2
    r = hidden_gradient_penalty(loss, h)
    assert r.tolist() == pytest.approx([2 * (5 + 13), 2 * 1])
    # Per channel scales of 10 and 100 on the second layer.
    scaled = hidden_gradient_penalty(loss, h, [None, torch.tensor([10.0, 100.0])])
    assert scaled.tolist() == pytest.approx([2 * 5 + 2 * math.hypot(50, 1200), 2 * 10])
    # d r / d a = r / a; d r / d h = a h / |h|, and 0, not NaN, where the norm is 0.
    r.sum().backward()
    assert a.grad.item() == pytest.approx(19)
    assert h[0].grad.flatten().tolist() == pytest.approx([2 * 0.6, 2 * 0.8, 0, 0])


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


def test_which_norms_are_watched():
    # Two per basic block and three per bottleneck, and one per convolution in a shortcut; no stem, no auxiliary head.
    for name, count in (("resnet20", 9 * 2), ("resnet18", 8 * 2 + 3), ("resnet50", 16 * 3 + 4)):
        with torch.device("meta"):
            net = build(name, num_classes=CLASSES)
            penalty = HiddenGradients(net)
            _, aux = net(torch.zeros(2, 3, 64, 64))
            seen = [edge.node.name() for edge in penalty._edges]
        assert len(aux) > 0
        assert len(seen) == count
        assert all("BatchNorm" in node for node in seen), set(seen)
    with pytest.raises(AssertionError, match="no residual network"):
        HiddenGradients(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))


def test_strength_does_not_depend_on_the_batch():
    # The batch twice: the same statistics, twice the samples. Values per sample and the objective's mean stay.
    net, (x, y) = made(), drawn()
    objective = Objective(penalty=HiddenGradients(net), penalty_weight=0.1)
    places, every = everyone(10)
    once = objective(*net(x), y, places[:5], every[:5], 0)
    slope = gradients(once.total, net)
    twice = objective(*net(x.repeat(2, 1, 1, 1)), y.repeat(2), places, every, 0)
    torch.testing.assert_close(twice.total, once.total)
    torch.testing.assert_close(twice.parts["loss/penalty"], 2 * once.parts["loss/penalty"])
    for one, other in zip(slope, gradients(twice.total, net), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def test_our_weight_is_the_published_one_over_128():
    # The authors' step: batch of 128, MEAN cross entropy, penalty = mean of w_y * r, total = loss + 0.1 * penalty.
    net, (x, y) = made(), drawn(batch=128)
    w = torch.tensor([1.0, 0.25, 0.5, 0.75], dtype=torch.float64)
    published = F.cross_entropy(by_hand(net, x)[0], y) + 0.1 * (w[y] * har_by_hand(net, x, y, "mean")).mean()
    objective = Objective(penalty=HiddenGradients(net, w), penalty_weight=0.1 / 128)
    ours = objective(*net(x), y, *everyone(128), 0).total
    torch.testing.assert_close(ours.double(), published, rtol=1e-6, atol=0)
    for one, other in zip(gradients(ours, net), gradients(published, net), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def test_class_weights():
    error, count = np.array([0.4, 0.1, 0.7]), np.array([5000, 500, 100])
    expected = error**0.6 / count**0.4
    found = class_weights(torch.tensor(error), torch.tensor(count))
    np.testing.assert_allclose(found.numpy(), expected / expected.max(), rtol=1e-6)
    assert found.dtype == torch.float32
    # Twice as many samples: 2^-0.4. No sample: 0, whatever its error. No error anywhere: uniform.
    nan = float("nan")
    assert class_weights(torch.tensor([0.3, 0.3, nan]), torch.tensor([10, 20, 0])).tolist() == pytest.approx(
        [1.0, 2**-0.4, 0.0]
    )
    assert class_weights(torch.zeros(3), torch.tensor([5, 7, 0])).tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("wrong", [([0.5, 1.5], [1, 1]), ([0.5, float("nan")], [1, 1]), ([0.5, 0.5], [1, -1])])
def test_class_weights_name_what_is_wrong(wrong):
    with pytest.raises(InputError, match="class 1 has"):
        class_weights(*(torch.tensor(values) for values in wrong))


def jacobian(net, x):
    """d z_m / d x_n of the batch as a whole, [m, K, n, pixels]."""
    whole = torch.autograd.functional.jacobian(lambda x: net(x)[0], x)
    return whole.flatten(3)


def test_jacobian_penalty_against_the_whole_jacobian():
    net, (x, _) = made(), drawn(batch=3, size=4)
    j = jacobian(net, x).numpy()
    v = random_directions(0, 0, torch.arange(3), 5, CLASSES).double()
    x.requires_grad_()
    found = jacobian_penalty(net(x)[0], x, v).detach().numpy()
    for n in range(3):
        squares = []
        for p in range(5):
            squares.append(np.square(sum(v[p, m].numpy() @ j[m, :, n] for m in range(3))).sum())
        assert found[n] == pytest.approx(CLASSES / 2 * np.mean(squares), rel=1e-10)


def test_mean_over_directions_is_half_the_squared_frobenius_norm():
    net, (x, _) = made(), drawn(batch=3, size=4)
    j = jacobian(net, x).numpy()
    exact = np.square(j).sum(axis=(0, 1, 3)) / 2
    v = random_directions(7, 0, torch.arange(3), 20_000, CLASSES).double().numpy()
    estimates = CLASSES / 2 * np.square(np.einsum("pmk,mknd->pnd", v, j)).sum(axis=2)
    error = estimates.std(axis=0) / math.sqrt(20_000)
    assert (np.abs(estimates.mean(axis=0) - exact) < 4 * error).all()
    assert (error < 0.02 * exact).all()


def test_unit_vectors_give_the_exact_norm_where_nothing_couples_samples():
    net, (x, _) = made().eval(), drawn(batch=3, size=4)
    j = jacobian(net, x)
    x.requires_grad_()
    basis = torch.eye(CLASSES, dtype=torch.float64).unsqueeze(1).expand(-1, 3, -1)
    found = jacobian_penalty(net(x)[0], x, basis)
    for n in range(3):
        assert found[n].item() == pytest.approx(float(j[n, :, n].square().sum()) / 2, rel=1e-10)


def test_input_jacobian_is_the_function_with_its_own_directions():
    net, (x, y) = made(), drawn()
    penalty, places = InputJacobian(net, n_proj=3, seed=11), torch.tensor([40, 7, 8, 0, 123_456])
    found = penalty(net(x)[0], y, places, everyone(5)[1], 2)
    leaf = x.clone().requires_grad_()
    expected = jacobian_penalty(by_hand(net, leaf)[0], leaf, random_directions(11, 2, places, 3, CLASSES))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for ours, theirs in zip(gradients(found.sum(), net), gradients(expected.sum(), net), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    assert not x.requires_grad


def test_directions_belong_to_samples():
    places = torch.randperm(1000)[:64] * 2400
    whole = random_directions(5, 3, places, 2, 10)
    assert whole.shape == (2, 64, 10) and whole.dtype == torch.float32
    for parts in (1, 2, 8):
        split = [random_directions(5, 3, part, 2, 10) for part in places.chunk(parts)]
        assert torch.equal(torch.cat(split, dim=1), whole)
    order = torch.randperm(64)
    assert torch.equal(random_directions(5, 3, places[order], 2, 10), whole[:, order])
    # Pinned: other values would change every run in progress.
    pinned = random_directions(1, 2, torch.tensor([3]), 1, 4)[0, 0]
    torch.testing.assert_close(
        pinned, torch.tensor([-0.2739435, 0.2269876, 0.8991310, 0.2549412]), rtol=1e-5, atol=1e-6
    )


def test_directions_are_uniform_on_the_sphere_and_independent():
    count, k = 20_000, 5
    draws = {
        "one": random_directions(0, 0, torch.arange(count), 1, k)[0],
        "epoch": random_directions(0, 1, torch.arange(count), 1, k)[0],
        "seed": random_directions(1, 0, torch.arange(count), 1, k)[0],
        "seed, high word": random_directions(1 << 32, 0, torch.arange(count), 1, k)[0],
        "projection": random_directions(0, 0, torch.arange(count), 2, k)[1],
        "neighbour": random_directions(0, 0, torch.arange(1, count + 1), 1, k)[0],
    }
    error = 5 / math.sqrt(count)  # five deviations of a mean of values within 1
    for name, v in draws.items():
        torch.testing.assert_close(v.norm(dim=1), torch.ones(count))
        assert v.mean(dim=0).abs().max() < error, name
        assert (v.T @ v / count - torch.eye(k) / k).abs().max() < error, name
        assert (v**4).mean().item() == pytest.approx(3 / (k * (k + 2)), abs=error), name
        if name != "one":
            assert (v.T @ draws["one"] / count).abs().max() < error, name
            assert ((v * draws["one"]).sum(dim=1) > 0.999).sum() < 20, name
    # In time as well: the epochs of one sample.
    v = torch.cat([random_directions(0, epoch, torch.tensor([17]), 1, k)[0] for epoch in range(2000)])
    assert (v.T @ v / 2000 - torch.eye(k) / k).abs().max() < 5 / math.sqrt(2000)


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


def test_sums_of_bfloat16_gradients_are_formed_in_float32():
    # 40,000 squares of 1/16: in bfloat16 a sum stalls at 16. Norm 50, each entry's share 1/200.
    leaf = torch.zeros(1, 4, 100, 100, dtype=torch.bfloat16, requires_grad=True)
    direction = torch.full_like(leaf, 0.25).requires_grad_()
    r = hidden_gradient_penalty((leaf * direction).float().sum(), [leaf])
    assert r.dtype == torch.float32
    assert r.item() == pytest.approx(50)
    r.sum().backward()
    assert direction.grad.float().mean().item() == pytest.approx(1 / 200, rel=0.01)


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


def test_wrong_number_of_directions():
    with pytest.raises(InputError, match="n_proj = 0"):
        InputJacobian(made(), n_proj=0)
