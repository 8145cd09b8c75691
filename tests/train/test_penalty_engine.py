"""Penalties through DeepSpeed: gradients of gradients, accumulated, against plain torch without a penalty object."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.config import Engine as EngineConfig
from pipeline.config import Optim
from pipeline.data.pixels import normalise
from pipeline.method.lipschitz import HiddenGradients, InputJacobian, random_directions
from pipeline.method.objective import Objective
from pipeline.model.backbone import build
from pipeline.train.dist import World
from pipeline.train.engine import Engine

CLASSES, BATCH, EPOCH = 4, 6, 3
PLACES = torch.arange(BATCH) + 100
EVERY = torch.ones(BATCH, dtype=torch.bool)


def made() -> nn.Module:
    torch.manual_seed(1)
    net = build("resnet20", num_classes=CLASSES, heads="none")
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
    return net


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randint(0, 256, (BATCH, 16, 16, 3), dtype=torch.uint8, generator=generator),
            torch.randint(0, CLASSES, (BATCH,), generator=generator),
        )
        for _ in range(2)
    ]


class SplitNorm(nn.Module):
    """BatchNorm as the authors of HAR take it apart: normalisation, kept, then scale and shift."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.hidden = torch.zeros(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.hidden = F.batch_norm(x, None, None, training=True)
        return self.hidden * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


def forward(net: nn.Module, x: torch.Tensor, bfloat16: bool) -> torch.Tensor:
    """Autocast around the forward alone, as in Network: gradients taken under it are rounded otherwise."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        main, _ = net(x)
    return main


def hidden_by_hand(net: nn.Module, x: torch.Tensor, y: torch.Tensor, weight: float, bfloat16: bool) -> torch.Tensor:
    """The total of one micro-batch; the network's norms are taken apart."""
    main = forward(net, x, bfloat16)
    hidden = [layer.hidden for layer in net.modules() if isinstance(layer, SplitNorm)]
    loss = F.cross_entropy(main, y, reduction="sum")
    found = torch.autograd.grad(loss, hidden, create_graph=True)
    assert len(found) == 18
    return (loss + weight * sum(g[n].pow(2).sum().sqrt() for g in found for n in range(BATCH))) / BATCH


def scaled_by_hand(net: nn.Module, x: torch.Tensor, y: torch.Tensor, weight: float, bfloat16: bool) -> torch.Tensor:
    """The same from the norms' outputs: bfloat16 rounds those, and would round other numbers in a norm taken apart.

    Squares are rounded as ours are. In float32 they would move this gradient by 0.8 %, float32 altogether by 21 %.
    """
    outputs: list[torch.Tensor] = []
    layers = [layer for name, layer in net.named_modules() if name.startswith("layer") and "bn" in name]
    handles = [layer.register_forward_hook(lambda _m, _a, output: outputs.append(output)) for layer in layers]
    for layer in net.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # so that the outputs stay; what `+=` adds to some leaves their gradients
    main = forward(net, x, bfloat16)
    for handle in handles:
        handle.remove()
    loss, again = (F.cross_entropy(main.float(), y, reduction="sum") for _ in range(2))  # rounded apart, as ours
    found = torch.autograd.grad(again, outputs, create_graph=True)
    assert len(found) == 18
    squares = [
        (g.square().sum(dim=(2, 3), dtype=torch.float32) * layer.weight**2).sum(dim=1)
        for g, layer in zip(found, layers, strict=True)
    ]
    return (loss + weight * sum(q.sqrt().sum() for q in squares)) / BATCH


def jacobian_by_hand(net: nn.Module, x: torch.Tensor, y: torch.Tensor, weight: float, bfloat16: bool) -> torch.Tensor:
    x.requires_grad_()
    main = forward(net, x, bfloat16)
    penalty = torch.zeros(())
    for v in random_directions(5, EPOCH, PLACES, 2, CLASSES):
        (g,) = torch.autograd.grad((main.float() * v).sum(), x, create_graph=True)
        penalty = penalty + CLASSES / 2 / 2 * g.pow(2).sum()
    return (F.cross_entropy(main.float(), y, reduction="sum") + weight * penalty) / BATCH


def expected(by_hand: Callable[..., torch.Tensor], weight: float, bfloat16: bool) -> torch.Tensor:
    net = made()
    if by_hand is hidden_by_hand:
        for name in ("layer1", "layer2", "layer3"):
            for block in getattr(net, name):
                block.bn1, block.bn2 = SplitNorm(block.bn1), SplitNorm(block.bn2)
    net.to(memory_format=torch.channels_last)
    for images, labels in batches():
        total = by_hand(net, normalise(images, channels_last=True), labels, weight, bfloat16)
        (total / 2).backward()
    return gradient(net)


def gradient(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for _, p in sorted(net.named_parameters()) if p.grad is not None])


def accumulated(engine: Engine, objective: Objective) -> torch.Tensor:
    for images, labels in batches():
        main, aux = engine.forward(images)
        engine.backward(objective(main, aux, labels, PLACES, EVERY, EPOCH).total)
    found = gradient(engine.module)
    engine.step(0.0)
    return found


@pytest.mark.parametrize(
    ("kind", "precision", "by_hand", "weight"),
    [
        ("hidden", "float32", hidden_by_hand, 0.5),
        ("hidden", "float32", scaled_by_hand, 0.5),
        ("hidden", "bfloat16", scaled_by_hand, 0.5),
        ("jacobian", "float32", jacobian_by_hand, 1.0),
        ("jacobian", "bfloat16", jacobian_by_hand, 1.0),
    ],
)
def test_accumulated_gradients_are_those_of_plain_torch(
    world: World, kind: str, precision: str, by_hand: Callable[..., torch.Tensor], weight: float
) -> None:
    settings = EngineConfig.model_validate({"precision": precision})
    engine = Engine(made(), Optim(epochs=1), settings, world, BATCH, micro_batches=2)
    engine.train()
    found = accumulated(engine, Objective(penalty=attached(kind, engine), penalty_weight=weight))
    wanted = expected(by_hand, weight, precision == "bfloat16")
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5
    # The penalty is no small part of it, or this would show nothing.
    assert (found - accumulated(engine, Objective())).norm() > 0.1 * wanted.norm()


def attached(kind: str, engine: Engine) -> HiddenGradients | InputJacobian:
    return HiddenGradients(engine.module) if kind == "hidden" else InputJacobian(engine.module, n_proj=2, seed=5)


@pytest.mark.parametrize("kind", ["hidden", "jacobian"])
def test_evaluation_between_steps_changes_nothing(world: World, kind: str) -> None:
    totals = []
    for evaluates in (False, True):
        engine = Engine(made(), Optim(epochs=1), EngineConfig(), world, BATCH, micro_batches=1)
        objective = Objective(penalty=attached(kind, engine), penalty_weight=0.02)
        for images, labels in batches():
            engine.train()
            main, aux = engine.forward(images)
            total = objective(main, aux, labels, PLACES, EVERY, EPOCH).total
            engine.backward(total)
            engine.step(0.1)
            totals.append(total.item())
            if evaluates:
                engine.eval()
                with torch.inference_mode():
                    engine.forward(images)
    assert totals[:2] == totals[2:]
