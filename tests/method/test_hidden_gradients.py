"""HAR against BatchNorm written out and by arithmetic."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from watched import CLASSES, by_hand, drawn, everyone, gradients, har_by_hand, made

from pipeline.method.lipschitz import (
    HiddenGradients,
    class_weights,
    hidden_gradient_penalty,
)
from pipeline.method.objective import Objective
from pipeline.model.backbone import build
from shards.errors import InputError


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


def test_sums_of_bfloat16_gradients_are_formed_in_float32():
    # 40,000 squares of 1/16: in bfloat16 a sum stalls at 16. Norm 50, each entry's share 1/200.
    leaf = torch.zeros(1, 4, 100, 100, dtype=torch.bfloat16, requires_grad=True)
    direction = torch.full_like(leaf, 0.25).requires_grad_()
    r = hidden_gradient_penalty((leaf * direction).float().sum(), [leaf])
    assert r.dtype == torch.float32
    assert r.item() == pytest.approx(50)
    r.sum().backward()
    assert direction.grad.float().mean().item() == pytest.approx(1 / 200, rel=0.01)
