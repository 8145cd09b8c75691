"""The engine's updates against plain torch: accumulation, decay, clipping, precision, layout."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.config import Engine as EngineConfig
from pipeline.config import Optim
from pipeline.train.dist import World
from pipeline.train.engine import Engine


class Net(nn.Module):
    """Every kind of parameter: convolution, norm, matrix, bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return self.fc(self.norm(self.conv(x)).relu().mean(dim=(2, 3))), []


@pytest.fixture
def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randint(0, 256, (6, 9, 9, 3), dtype=torch.uint8, generator=generator),
            torch.randint(0, 4, (6,), generator=generator),
        )
        for _ in range(6)
    ]


def made(world: World, optim: Optim, engine: EngineConfig | None = None) -> Engine:
    torch.manual_seed(1)
    return Engine(Net(), optim, engine or EngineConfig(), world, micro_batch=6, micro_batches=2)


def by_hand(batches: list[tuple[torch.Tensor, torch.Tensor]], optim: Optim, lrs: list[float]) -> dict[str, np.ndarray]:
    """Nesterov momentum, decoupled by nothing, written out: v = mu v + g + wd p; p -= lr (g + wd p + mu v)."""
    torch.manual_seed(1)
    net = Net()
    velocity = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for step, lr in enumerate(lrs):
        net.zero_grad()
        for images, labels in batches[2 * step : 2 * step + 2]:
            x = images.permute(0, 3, 1, 2).float() / 255
            x -= torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
            x /= torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
            (F.cross_entropy(net(x)[0], labels) / 2).backward()
        norm = torch.sqrt(sum(p.grad.double().square().sum() for p in net.parameters()))
        scale = min(1.0, optim.clip / float(norm)) if optim.clip else 1.0
        with torch.no_grad():
            for name, p in net.named_parameters():
                decays = name in ("conv.weight", "fc.weight") or optim.decay_norm_and_bias
                g = p.grad * scale + optim.weight_decay * p * decays
                velocity[name] = optim.momentum * velocity[name] + g
                p -= lr * (g + optim.momentum * velocity[name] if optim.nesterov else velocity[name])
    return {name: p.detach().numpy() for name, p in net.named_parameters()}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"nesterov": True},
        {"decay_norm_and_bias": True},
        {"clip": 0.05},
        {"momentum": 0.0, "weight_decay": 0.0},
    ],
    ids=str,
)
def test_three_updates_are_those_of_the_textbook(
    world: World, batches: list[tuple[torch.Tensor, torch.Tensor]], change: dict
) -> None:
    optim = Optim(epochs=1, **({"weight_decay": 0.05} | change))
    lrs = [0.5, 0.3, 0.1]
    engine = made(world, optim)
    engine.train()
    for step, lr in enumerate(lrs):
        for images, labels in batches[2 * step : 2 * step + 2]:
            main, _ = engine.forward(images)
            engine.backward(F.cross_entropy(main, labels))
        engine.step(lr)
    expected = by_hand(batches, optim, lrs)
    for name, parameter in engine.module.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=2e-4, atol=2e-5, err_msg=name)


def test_an_update_comes_only_with_the_last_micro_batch(
    world: World, batches: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    engine = made(world, Optim(epochs=1))
    engine.train()
    before = engine.module.fc.weight.detach().clone()
    engine.backward(F.cross_entropy(engine.forward(batches[0][0])[0], batches[0][1]))
    assert torch.equal(before, engine.module.fc.weight)
    with pytest.raises(AssertionError):
        engine.step(0.1)


def test_bfloat16_multiplies_in_bfloat16_and_keeps_float32(
    world: World, batches: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    engine = made(world, Optim(epochs=1), EngineConfig(precision="bfloat16"))
    engine.train()
    main, _ = engine.forward(batches[0][0])
    assert main.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in engine.module.parameters())
    assert engine.module.norm.running_mean.dtype == torch.float32
    exact, _ = made(world, Optim(epochs=1), EngineConfig(precision="float32")).forward(batches[0][0])
    assert exact.dtype == torch.float32
    torch.testing.assert_close(main.float(), exact, atol=0.05, rtol=0.05)
    assert made(world, Optim(epochs=1)).forward(batches[0][0])[0].dtype == torch.float32  # auto, on a CPU


@pytest.mark.parametrize("channels_last", [True, False])
def test_layout_changes_the_memory_and_not_the_numbers(
    world: World, batches: list[tuple[torch.Tensor, torch.Tensor]], channels_last: bool
) -> None:
    engine = made(world, Optim(epochs=1), EngineConfig(channels_last=channels_last))
    assert engine.module.conv.weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    reference = made(world, Optim(epochs=1), EngineConfig(channels_last=False))
    torch.testing.assert_close(engine.forward(batches[0][0])[0], reference.forward(batches[0][0])[0])


def test_evaluation_uses_running_statistics(world: World, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    engine = made(world, Optim(epochs=1))
    engine.eval()
    alone = torch.cat([engine.forward(batches[0][0][i : i + 1])[0] for i in range(6)])
    torch.testing.assert_close(alone, engine.forward(batches[0][0])[0])
    assert torch.equal(engine.module.norm.running_mean, torch.zeros(8))


Batch = tuple[torch.Tensor, torch.Tensor]


def stepped(engine: Engine, batches: list[Batch], lr: float = 0.1, add: object = None) -> torch.Tensor:
    """One step; `add(loss, logits)` changes the loss of the second micro-batch."""
    for i, (images, labels) in enumerate(batches[:2]):
        main, _ = engine.forward(images)
        loss = F.cross_entropy(main, labels)
        engine.backward(add(loss, main) if i == 1 and add is not None else loss)
    return engine.step(lr)


def everything(engine: Engine) -> dict[str, torch.Tensor]:
    state = {name: tensor.clone() for name, tensor in engine.module.state_dict().items()}
    momenta = engine.optimizer.state_dict()["state"]
    return state | {f"momentum of {i}": one["momentum_buffer"].clone() for i, one in momenta.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


# The loss of the second micro-batch: not finite with a gradient that is, finite with one that is not, and neither.
BAD = {
    "loss": (lambda loss, main: loss + float("inf"), [0, 1, 0, 0]),
    "gradient": (lambda loss, main: loss + (main[0, 0] * 0).abs().sqrt(), [0, 0, 0, 1]),
    "both": (lambda loss, main: loss + (main[0, 0] * float("nan")), [0, 1, 0, 1]),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("first", [True, False])
def test_a_step_that_is_not_finite_changes_nothing(
    world: World, batches: list[Batch], kind: str, clip: float, first: bool
) -> None:
    engine = made(world, Optim(epochs=1, clip=clip))
    engine.train()
    if not first:
        assert stepped(engine, batches).tolist() == [0, 0, 0, 0]
    before = everything(engine)
    assert len([name for name in before if name.startswith("momentum")]) == 5
    add, flags = BAD[kind]
    assert stepped(engine, batches[2:], add=add).tolist() == flags
    assert same(before, everything(engine))
    # And the training goes on as if that step had not been.
    without = made(world, Optim(epochs=1, clip=clip))
    without.train()
    if not first:
        stepped(without, batches)
    for one in (engine, without):
        assert stepped(one, batches[4:]).tolist() == [0, 0, 0, 0]
    assert same(everything(without), everything(engine))
    assert not same(before, everything(engine))


def test_a_variance_out_of_range_is_found_though_loss_and_gradient_are_finite(
    world: World, batches: list[Batch]
) -> None:
    engine = made(world, Optim(epochs=1))
    engine.train()
    with torch.no_grad():
        engine.module.conv.weight *= 1e20
    before = everything(engine)
    assert stepped(engine, batches).tolist() == [0, 0, 1, 0]
    assert same(before, everything(engine))


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_the_optimizer_takes_up_what_another_layout_or_version_saved(
    world: World, batches: list[Batch], momentum: float
) -> None:
    optim = Optim(epochs=1, momentum=momentum)
    first, *others = [made(world, optim, EngineConfig(channels_last=flag)) for flag in (False, False, True)]
    first.train()
    stepped(first, batches)
    saved = first.optimizer.state_dict()
    for group in saved["param_groups"]:
        group["fused"] = None  # what was saved before the flag was heeded
    ended = []
    for other in others:
        other.module.load_state_dict(first.module.state_dict())
        other.statistics.reload()
        other.optimizer.load_state_dict(saved)
        other.train()
        stepped(other, batches[2:])
        before = everything(other) if momentum else other.module.state_dict()
        assert stepped(other, batches[4:], add=BAD["both"][0]).any()
        assert same(before, everything(other) if momentum else other.module.state_dict())
        ended.append(before)
    stepped(first, batches[2:])
    assert same(ended[0], everything(first) if momentum else first.module.state_dict())
    for name, tensor in ended[0].items():
        torch.testing.assert_close(ended[1][name], tensor, msg=name)


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("layout", [False, True])
def test_a_look_answers_by_the_batch_and_changes_nothing(
    world: World, batches: list[tuple[torch.Tensor, torch.Tensor]], averaged: bool, layout: bool
) -> None:
    settings = EngineConfig(channels_last=layout)
    looked, plain = (made(world, Optim(epochs=1, ema=0.5), settings) for _ in range(2))
    for engine in (looked, plain):
        engine.train()
        for step in range(2):
            for images, labels in batches[2 * step : 2 * step + 2]:
                if engine is looked:
                    answer, _ = engine.look(images, averaged)
                    assert not answer.requires_grad
                    net = engine.ema.module if averaged and engine.ema else engine.module
                    x = images.permute(0, 3, 1, 2).float() / 255
                    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
                        [0.229, 0.224, 0.225]
                    ).view(3, 1, 1)
                    features = F.batch_norm(net.conv(x), None, None, net.norm.weight, net.norm.bias, training=True)
                    torch.testing.assert_close(answer, net.fc(features.relu().mean(dim=(2, 3))), rtol=1e-4, atol=1e-5)
                    assert not net.training if averaged else net.training
                engine.backward(F.cross_entropy(engine.forward(images)[0], labels))
            engine.step(0.1)
        engine.eval()
    for name, tensor in plain.module.state_dict().items():
        assert torch.equal(looked.module.state_dict()[name], tensor), name
    assert looked.ema is not None and plain.ema is not None
    for name, tensor in plain.ema.state_dict().items():
        assert torch.equal(looked.ema.state_dict()[name], tensor), name
    seen = (engine.forward(batches[5][0])[0] for engine in (looked, plain))
    assert torch.equal(*seen)
