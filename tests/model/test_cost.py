import pytest
import torch
from torch import nn

from pipeline.model.backbone import build
from pipeline.model.cost import macs, parameters


def added(name, size, heads, num_classes, stem="imagenet"):
    """(MACs, parameters) of the plain net, and what the heads add to each."""
    plain = build(name, num_classes, "none", stem=stem)
    full = build(name, num_classes, heads, stem=stem)
    base = macs(plain, size), parameters(plain)
    return base, (macs(full, size) - base[0], parameters(full) - base[1])


def test_counting_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))
    assert macs(net, 8) == 8 * 4 * 4 * (3 * 9) + 128 * 5
    assert parameters(net) == 8 * 27 + 8 + 128 * 5 + 5
    grouped = nn.Sequential(nn.Conv2d(3, 6, 1, groups=3))
    assert macs(grouped, 4) == 6 * 16 * 1


def test_counting_leaves_the_net_alone():
    net = build("resnet20", 3, "light").train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    macs(net, 16)
    assert net.training
    assert all(not module._forward_hooks for module in net.modules())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_bottleneck_heads_on_resnet50():
    # Released heads: +1.95 on 4.09 GMACs (+48 %), +26 M parameters, without the heads' 1,000-way classifiers.
    base, extra = added("resnet50", 224, "bottleneck", 1000)
    assert base == (4_089_184_256, 25_557_032)
    linear_macs, linear_parameters = 3 * 2048 * 1000, 3 * 2049 * 1000
    assert (extra[0] - linear_macs) / 1e9 == pytest.approx(1.95, abs=0.01)
    assert extra[0] / base[0] == pytest.approx(0.48, abs=0.005)
    assert (extra[1] - linear_parameters) / 1e6 == pytest.approx(26, abs=0.6)


@pytest.mark.parametrize("num_classes", [14, 50, 1000])
def test_light_heads_on_resnet50_are_light(num_classes):
    base, extra = added("resnet50", 224, "light", num_classes)
    assert 0 < extra[0] <= 0.02 * base[0]
    assert 0 < extra[1] <= 0.08 * base[1]


@pytest.mark.parametrize(
    ("name", "size", "stem"),
    [("resnet18", 224, "imagenet"), ("resnet18", 64, "imagenet"), ("resnet34", 32, "small"), ("resnet20", 32, "small")],
)
def test_light_heads_are_light_elsewhere(name, size, stem):
    base, extra = added(name, size, "light", 10, stem)
    assert 0 < extra[0] <= 0.02 * base[0]
    assert 0 < extra[1] <= 0.08 * base[1]


def test_bottleneck_heads_on_resnet34_at_32_pixels():
    base, extra = added("resnet34", 32, "bottleneck", 10, "small")
    assert extra[0] / base[0] == pytest.approx(0.034, abs=0.001)
