"""What is timed: training steps of our methods, and of peers, on batches that already lie on the device."""

import importlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.config import Engine as EngineConfig
from pipeline.config import Optim
from pipeline.data.pixels import normalise
from pipeline.method.alasca import Alasca, Trust
from pipeline.method.bank import SampleBank
from pipeline.method.elr import EarlyLearning
from pipeline.method.lipschitz import HiddenGradients, InputJacobian
from pipeline.method.losses import base_loss
from pipeline.method.objective import Objective
from pipeline.model.backbone import build
from pipeline.train.dist import World
from pipeline.train.engine import Engine

HEADS = {"alasca-light": "light", "alasca-bottleneck": "bottleneck", "elr-alasca": "light"}
ALASCA = tuple(HEADS)
PENALTIES = ("har", "jacobian")
METHODS = ("ce", "gce", *ALASCA, *PENALTIES)
PLAIN, TIMM = "plain torch", "timm"
# Weights as published (HAR's 0.1 on a mean over 128). They scale a number and cost no time.
PENALTY_WEIGHT = {"har": 0.1 / 128, "jacobian": 0.01}
BATCHES = 4  # distinct ones, used in turn
EPOCH, LR = 15.0, 0.01  # half of ALASCA's warm-up; small enough for random labels

Step = Callable[[], torch.Tensor]  # one optimizer step -> the loss of its last micro-batch, 0-dim


@dataclass(frozen=True)
class Setting:
    """What every variant of a run shares."""

    model: str
    stem: str
    size: int
    classes: int
    micro_batch: int
    micro_batches: int
    precision: str
    compiler: str = "inductor"  # backend of torch.compile
    width: int | None = None  # channels of the first stage

    @property
    def images_per_step(self) -> int:
        """Images that one optimizer step sees."""
        return self.micro_batch * self.micro_batches


@dataclass(frozen=True)
class Variant:
    """A method or a peer, and how it is run."""

    method: str
    channels_last: bool
    compiled: bool = False

    @property
    def way(self) -> str:
        """Layout, and whether it is compiled."""
        return ("channels_last" if self.channels_last else "contiguous") + (
            ", compiled" if self.compiled else ", eager"
        )

    def __str__(self) -> str:
        return f"{self.method} ({self.way})"


@dataclass(frozen=True)
class Batch:
    """One micro-batch of noise on the device: uint8 images [B, H, W, 3], labels, positions and validity [B]."""

    images: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    valid: torch.Tensor


def noise(setting: Setting, device: torch.device) -> list[Batch]:
    """Return the micro-batches that every variant trains on, in turn."""
    generator = torch.Generator().manual_seed(0)
    shape = (setting.micro_batch, setting.size, setting.size, 3)
    return [
        Batch(
            torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device),
            torch.randint(0, setting.classes, shape[:1], generator=generator).to(device),
            torch.arange(number * setting.micro_batch, (number + 1) * setting.micro_batch, device=device),
            torch.ones(setting.micro_batch, dtype=torch.bool, device=device),
        )
        for number in range(BATCHES)
    ]


def prepare(variant: Variant, setting: Setting, world: World, batches: list[Batch]) -> Step:
    """Build the variant's network on the device and return its training step.

    Raises:
        ImportError: timm is wanted and not installed.
        RuntimeError: timm has no network of this name.
    """
    torch.manual_seed(0)
    endless = itertools.cycle(batches)
    if variant.method in METHODS:
        return _ours(variant, setting, world, endless)
    return _peer(variant, setting, world, endless)


def _ours(variant: Variant, setting: Setting, world: World, batches: Iterator[Batch]) -> Step:
    """As `pipeline.train.loop` does it, without loader and record."""
    heads = HEADS.get(variant.method, "none")
    module = build(setting.model, setting.classes, heads, stem=setting.stem, width=setting.width)
    settings = EngineConfig.model_validate({"precision": setting.precision, "channels_last": variant.channels_last})
    engine = Engine(module, Optim(epochs=1), settings, world, setting.micro_batch, setting.micro_batches)
    objective = _objective(variant.method, engine.module, setting, world.device)
    if variant.compiled:
        # The forward alone: around it DeepSpeed's own hooks read clocks, which cannot be compiled.
        engine.module.forward = torch.compile(engine.module.forward, fullgraph=True, backend=setting.compiler)
    engine.train()

    def step() -> torch.Tensor:
        for batch in itertools.islice(batches, setting.micro_batches):
            main, aux = engine.forward(batch.images)
            losses = objective(main, aux, batch.labels, batch.positions, batch.valid, EPOCH)
            engine.backward(losses.total)
        objective.settle(engine.step(LR).any())
        return losses.total.detach()

    return step


def _objective(method: str, module: nn.Module, setting: Setting, device: torch.device) -> Objective:
    if method in ALASCA:
        kept = ("alasca", "elr") if method == "elr-alasca" else ("alasca",)
        banks = {name: SampleBank(0, BATCHES * setting.micro_batch, setting.classes, device=device) for name in kept}
        base = EarlyLearning(banks["elr"]) if "elr" in banks else None
        return Objective(base, Alasca(Trust(bank=banks["alasca"])), banks=banks)
    if method == "gce":
        return Objective(base_loss("gce"))
    if method == "har":
        return Objective(penalty=HiddenGradients(module), penalty_weight=PENALTY_WEIGHT[method])
    if method == "jacobian":
        return Objective(penalty=InputJacobian(module), penalty_weight=PENALTY_WEIGHT[method])
    return Objective()


def _peer(variant: Variant, setting: Setting, world: World, batches: Iterator[Batch]) -> Step:
    """Cross entropy in the loop that everybody writes: autocast, backward, SGD; one process, no DeepSpeed."""
    module = _peer_module(variant.method, setting).to(world.device)
    if variant.channels_last:
        module.to(memory_format=torch.channels_last)
    module.train()
    optim = Optim(epochs=1)
    optimizer = torch.optim.SGD(
        module.parameters(), lr=LR, momentum=optim.momentum, nesterov=optim.nesterov, weight_decay=optim.weight_decay
    )
    autocast = _autocasts(setting.precision, world.device)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        for batch in itertools.islice(batches, setting.micro_batches):
            with torch.autocast(world.device.type, dtype=torch.bfloat16, enabled=autocast):
                logits = module(normalise(batch.images, variant.channels_last))
                loss = F.cross_entropy(logits, batch.labels)
            (loss / setting.micro_batches).backward()
        optimizer.step()
        return loss.detach()

    return step


class _Main(nn.Module):
    """Our network without heads, as one that returns the logits alone."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.network = build(setting.model, setting.classes, "none", stem=setting.stem, width=setting.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        main: torch.Tensor = self.network(x)[0]
        return main


def _peer_module(method: str, setting: Setting) -> nn.Module:
    if method == PLAIN:
        return _Main(setting)
    module: nn.Module = importlib.import_module("timm").create_model(setting.model, num_classes=setting.classes)
    if setting.stem == "small":
        module.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        module.maxpool = nn.Identity()
    return module


def _autocasts(precision: str, device: torch.device) -> bool:
    """The rule of `pipeline.train.network`, so that peers run in our precision."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bfloat16"
