"""Two networks as one module: their weights, their gradients, their logits."""

from functools import partial
from pathlib import Path

import pytest
import torch

from pipeline.model import backbone
from pipeline.model.pair import Pair, build_networks, first_network, separate
from shards.errors import InputError


def make(heads="light", **more):
    return partial(backbone.build, "resnet20", 5, heads=heads, **more)


def test_the_first_is_the_one_alone_and_the_second_another():
    alone, pair = build_networks(make(), 1, 3), build_networks(make(), 2, 3)
    assert first_network(pair) is pair.network1 and first_network(alone) is alone
    ours, theirs = alone.state_dict(), pair.network1.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    # Heads move no backbone, and the second is no other run's first.
    again, others = build_networks(make("none"), 2, 3).network2, [build_networks(make("none"), 1, s) for s in range(9)]
    weight = pair.network2.layer3[0].conv1.weight
    assert torch.equal(again.layer3[0].conv1.weight, weight)
    assert not any(torch.equal(other.layer3[0].conv1.weight, weight) for other in others)


def test_logits_are_both_and_gradients_stay_apart():
    pair = build_networks(make(), 2, 0)
    x = torch.randn(4, 3, 16, 16)
    main, aux = pair(x)
    assert main.shape == (2, 4, 5) and [head.shape for head in aux] == [(2, 4, 5)] * len(pair.network1.heads)
    apart = separate(main, aux)
    for network, (logits, heads) in zip((pair.network1, pair.network2), apart, strict=True):
        own, others = network(x)
        assert torch.equal(own, logits) and all(torch.equal(a, b) for a, b in zip(others, heads, strict=True))
    assert not torch.equal(apart[0][0], apart[1][0])
    (apart[0][0].square().sum() + apart[0][1][-1].square().sum()).backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in pair.network2.parameters())
    assert all(pair.network1.get_parameter(name).grad.any() for name in ("conv1.weight", "fc.weight"))


def test_one_network_is_a_list_of_one():
    main, aux = torch.randn(4, 5), [torch.randn(4, 5)]
    ((own, heads),) = separate(main, aux)
    assert own is main and heads == aux


def test_two_that_would_be_one_are_refused(tmp_path: Path):
    file = tmp_path / "w.pt"
    state = build_networks(make("none"), 1, 1).state_dict()
    torch.save(state, file)
    with pytest.raises(InputError, match=r"model.pretrained holds a classifier .* leave fc out"):
        build_networks(make(pretrained=str(file)), 2, 0)
    torch.save({**state, "fc.weight": torch.randn(7, 64), "fc.bias": torch.randn(7)}, file)
    pair = build_networks(make(pretrained=str(file)), 2, 0)
    assert isinstance(pair, Pair)
    assert torch.equal(pair.network1.conv1.weight, pair.network2.conv1.weight)
