"""Which weights a step moves: all of them, the backbone also through the heads."""

import pytest
import torch

from pipeline.method.alasca import Alasca, Trust
from pipeline.method.bank import SampleBank
from pipeline.method.objective import Objective
from pipeline.model.backbone import build


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def step(net, heads, size, batch=2):
    """One backward of the whole objective (plain CE without heads)."""
    aux = None if heads == "none" else Alasca(Trust(warmup_epochs=0, bank=SampleBank(0, batch, 3)))
    objective = Objective(aux=aux)
    main, logits = net(torch.randn(batch, 3, size, size))
    every = torch.ones(batch, dtype=torch.bool)
    losses = objective(main, logits, torch.arange(batch), torch.arange(batch), every, 0)
    losses.total.backward()
    return losses


COMBINATIONS = [
    (name, heads, stem, 16 if name == "resnet20" else 32)
    for name in ("resnet18", "resnet20", "resnet34", "resnet50")
    for heads in ("none", "light", "bottleneck")
    for stem in ("imagenet", "small")
    if (name, stem) != ("resnet20", "imagenet")
]


@pytest.mark.parametrize(("name", "heads", "stem", "size"), [*COMBINATIONS, ("resnet101", "light", "imagenet", 64)])
def test_every_parameter_receives_a_gradient(name, heads, stem, size):
    torch.manual_seed(0)
    net = build(name, num_classes=3, heads=heads, stem=stem)
    step(net, heads, size)
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.shape == parameter.shape
        assert parameter.grad.isfinite().all(), key


def test_the_heads_gradients_flow_into_the_backbone():
    torch.manual_seed(0)
    net = build("resnet20", num_classes=3, heads="light")
    _main, aux = net(torch.randn(4, 3, 16, 16))
    for position, logits in enumerate(aux):
        net.zero_grad()
        logits.square().sum().backward(retain_graph=True)
        reached = [stage for stage in ("layer1", "layer2", "layer3") if _has_gradient(getattr(net, stage))]
        assert reached == ["layer1", "layer2", "layer3"][: position + 1]
        assert _has_gradient(net.conv1)
        assert not _has_gradient(net.fc)


def test_the_regulariser_does_not_reach_the_main_classifier():
    # Same weights, same images: with lambda = 2 and with lambda = 0 the classifier's gradient is that of the base loss.
    torch.manual_seed(0)
    net = build("resnet20", num_classes=3, heads="light")
    images, every, places = torch.randn(4, 3, 16, 16), torch.ones(4, dtype=torch.bool), torch.arange(4)
    found = {}
    for weight in (0.0, 2.0):
        net.zero_grad()
        main, aux = net(images)
        objective = Objective(aux=Alasca(Trust(warmup_epochs=0, bank=SampleBank(0, 4, 3)), weight))
        objective(main, aux, torch.tensor([0, 1, 2, 0]), places, every, 0).total.backward()
        found[weight] = (net.fc.weight.grad.clone(), net.layer1[0].conv1.weight.grad.clone())
    assert torch.equal(found[0.0][0], found[2.0][0])
    assert not torch.allclose(found[0.0][1], found[2.0][1])


def _has_gradient(module):
    return any(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())
