"""Norms of Jacobians against the exact ones, and that looking at a run does not change it."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.config import Engine as EngineConfig
from pipeline.config import Optim
from pipeline.data.pixels import normalise
from pipeline.method.lipschitz import HiddenGradients, InputJacobian, random_directions
from pipeline.model import backbone
from pipeline.train.dist import World
from pipeline.train.engine import Engine
from pipeline.train.norms import IMAGES, JacobianNorms, squared_norms

CLASSES = 3
NAMES = ["input", "hidden/stage1", "hidden/stage2", "hidden/stage3"]


def made(heads: str = "light") -> nn.Module:
    """A ResNet-20 whose running statistics are no longer those it began with."""
    torch.manual_seed(3)
    net = backbone.build("resnet20", CLASSES, heads=heads)
    for _ in range(3):
        net(torch.randn(8, 3, 8, 8))
    return net


def batch(seed: int, count: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 8, 8, 3), dtype=torch.uint8, generator=generator)
    positions = torch.arange(count) + 100 * seed
    return images, positions, torch.ones(count, dtype=torch.bool)


def test_the_mean_over_directions_is_the_exact_jacobian() -> None:
    net = made().double().eval()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    # Over an orthonormal basis the mean of K * ||J^T v||^2 is ||J||_F^2, exactly.
    basis = torch.linalg.qr(torch.randn(CLASSES, CLASSES, dtype=torch.float64)).Q
    parts = [squared_norms(net, x, v.expand(3, CLASSES)) for v in basis]
    found = {name: torch.stack([p[name] for p in parts]).mean(dim=0) for name in NAMES}

    def rest(stage: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """From the output of a stage (0: the input) to the main logits."""

        def run(h: torch.Tensor) -> torch.Tensor:
            if stage == 0:
                h = F.relu(net.bn1(net.conv1(h)))
            for number in range(stage + 1, 4):
                h = getattr(net, f"layer{number}")(h)
            return net.fc(h.mean(dim=(2, 3)))

        return run

    for n in range(3):
        with torch.no_grad():
            places = [x[n : n + 1]]
            h = F.relu(net.bn1(net.conv1(places[0])))
            for number in (1, 2, 3):
                h = getattr(net, f"layer{number}")(h)
                places.append(h)
        for stage, (name, place) in enumerate(zip(NAMES, places, strict=True)):
            jacobian = torch.autograd.functional.jacobian(rest(stage), place.clone())
            assert float(found[name][n]) == pytest.approx(float(jacobian.square().sum()), rel=1e-10), name


def test_random_directions_estimate_it_without_bias() -> None:
    net = made().eval()
    x = normalise(batch(1, 1)[0], channels_last=False)
    exact = squared_norms(net, x.expand(CLASSES, -1, -1, -1), torch.eye(CLASSES))["input"].mean()
    many = random_directions(0, 0, torch.arange(2000), 1, CLASSES)[0]
    found = squared_norms(net, x.expand(2000, -1, -1, -1), many)["input"]
    assert abs(float(found.mean() - exact)) < 4 * float(found.std()) / math.sqrt(2000)


def test_samples_do_not_touch_each_other() -> None:
    net = made().eval()
    images, positions, _ = batch(1, 6)
    x, v = normalise(images, channels_last=False), random_directions(0, 2, positions, 1, CLASSES)[0]
    together = squared_norms(net, x, v)
    for n in range(6):
        alone = squared_norms(net, x[n : n + 1], v[n : n + 1])
        assert all(float(alone[name][0]) == pytest.approx(float(together[name][n]), rel=1e-4) for name in NAMES)


def test_the_figure_is_the_root_mean_square_over_valid_images_however_lanes_are_shared(world: World) -> None:
    net = made()
    norms = JacobianNorms(net, 7, lanes=4, channels_last=False)
    lanes = [batch(seed) for seed in range(4)]
    lanes[2][2][0] = False
    for lane in lanes:
        norms.take(*lane)
    found = norms.record(epoch=5)
    assert list(found) == ["images", *NAMES] and found["images"] == IMAGES - 1
    # Two processes with two lanes each, or four with one: sums of sums.
    for owned in ([[0, 1], [2, 3]], [[0], [1], [2], [3]]):
        total = dict.fromkeys(found, 0.0)
        for mine in owned:
            share = JacobianNorms(net, 7, lanes=4, channels_last=False)
            for number in mine:
                share.take(*lanes[number])
            for name, value in share.measure(epoch=5).items():
                total[name] += float(value)
        assert total["images"] == found["images"]
        for name in NAMES:
            assert math.sqrt(total[name] / total["images"]) == pytest.approx(found[name], rel=1e-4)
    for seed, epoch in ((8, 5), (7, 6)):
        other = JacobianNorms(net, seed, lanes=4, channels_last=False)
        for lane in lanes:
            other.take(*lane)
        assert other.record(epoch)["input"] != found["input"]


def test_what_is_not_valid_counts_nowhere_and_nothing_is_nan(world: World) -> None:
    norms = JacobianNorms(made(), 7, lanes=64, channels_last=False)
    images, positions, valid = batch(1)
    norms.take(images, positions, ~valid)
    found = norms.record(0)
    assert found["images"] == 0 and all(math.isnan(found[name]) for name in NAMES)
    norms.take(images, positions, valid)
    assert norms.record(0)["images"] == 1, "one of each lane, where there are many; what was kept is gone"


def test_several_ranks_use_the_mean_of_their_statistics_and_keep_their_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there, mean = made(), made(), made()
    for name, buffer in there.named_buffers():
        if buffer.is_floating_point():
            buffer *= 3.0
            mean.get_buffer(name).mul_(2.0)

    def flat_of(net: nn.Module) -> torch.Tensor:
        return torch.cat([b.flatten() for b in net.buffers() if b.is_floating_point()])

    lane = batch(1)
    alone = JacobianNorms(mean, 7, lanes=1, channels_last=False)
    alone.take(*lane)
    wanted = alone.measure(0)
    before = copy.deepcopy(here.state_dict())
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "get_world_size", lambda: 2)
        patch.setattr(torch.distributed, "all_reduce", lambda flat: flat.add_(flat_of(there)))
        shared = JacobianNorms(here, 7, lanes=1, channels_last=False)
        shared.take(*lane)
        found = shared.measure(0)
    assert all(float(found[name]) == pytest.approx(float(wanted[name]), rel=1e-4) for name in NAMES)
    assert all(torch.equal(value, before[name]) for name, value in here.state_dict().items())


@pytest.mark.parametrize("channels_last", [False, True])
def test_nothing_of_the_module_changes(world: World, channels_last: bool) -> None:
    net = made()
    net.bn1.eval()
    modes = [part.training for part in net.modules()]
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    hooks = [len(part._forward_hooks) for part in net.modules()]
    norms = JacobianNorms(net, 7, lanes=1, channels_last=channels_last)
    norms.take(*batch(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = norms.record(0)
    norms.take(*batch(1))
    assert norms.record(0) == rounded, "float32, whatever surrounds it"
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [part.training for part in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(random, torch.get_rng_state())
    assert [len(part._forward_hooks) for part in net.modules()] == hooks


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("penalty", [None, HiddenGradients, InputJacobian])
def test_training_is_bit_for_bit_the_same_with_it(
    world: World, precision: str, penalty: Callable[[nn.Module], HiddenGradients | InputJacobian] | None
) -> None:
    ends = []
    for looks in (False, True):
        settings = EngineConfig.model_validate({"precision": precision, "channels_last": True})
        engine = Engine(made(), Optim(epochs=1), settings, world, 12, micro_batches=2)
        extra = penalty(engine.module) if penalty else None
        norms = JacobianNorms(engine.module, 7, lanes=2, channels_last=True)
        engine.train()
        seen = []
        for step in range(3):
            for lane in range(2):
                images, positions, valid = batch(2 * step + lane)
                main, _ = engine.forward(images)
                labels = positions % CLASSES
                loss = F.cross_entropy(main.float(), labels)
                if extra is not None:
                    loss = loss + 0.01 * extra(main, labels, positions, valid, 0).mean()
                if looks:
                    norms.take(images, positions, valid)
                engine.backward(loss)
            engine.step(0.1)
            if looks:
                seen.append(norms.record(0))
        assert not looks or len({s["input"] for s in seen}) == 3
        momentum = [s["momentum_buffer"] for s in engine.optimizer.state_dict()["state"].values()]
        ends.append([*engine.module.state_dict().values(), *momentum])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
