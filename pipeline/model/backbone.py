"""ResNets that return the main logits and those of their auxiliary heads."""

import difflib

import torch
import torchvision
from torch import nn

from pipeline.model.heads import build_heads
from pipeline.model.pretrained import load_pretrained
from pipeline.model.resnet10 import ResNet10
from pipeline.model.resnet20 import ResNet20
from shards.errors import InputError

BACKBONES = ("resnet10", "resnet18", "resnet20", "resnet34", "resnet50", "resnet101")
# Not torchvision's, so of any width.
_OWN = {"resnet10": ResNet10, "resnet20": ResNet20}
STEMS = ("imagenet", "small")


class Backbone(nn.Module):
    """A ResNet with auxiliary heads: x [B, 3, H, W] -> (main logits [B, K], list of auxiliary logits [B, K]).

    The parameters and buffers carry torchvision's names (`conv1.weight`, `layer1.0.bn1.weight`, `fc.bias`, ...), those
    of the heads start with `heads.`: a torchvision state_dict is this one without the latter.
    """

    conv1: nn.Conv2d
    bn1: nn.Module
    relu: nn.Module
    maxpool: nn.Module
    avgpool: nn.Module
    fc: nn.Linear
    heads: nn.ModuleList

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        for name, child in trunk.named_children():
            self.add_module(name, child)
        self.stage_names = tuple(name for name, _ in trunk.named_children() if name.startswith("layer"))
        self.heads = nn.ModuleList()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the main logits [B, K] and one [B, K] for each head, from the shallowest; none without heads."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        aux: list[torch.Tensor] = []
        for position, name in enumerate(self.stage_names):
            x = getattr(self, name)(x)
            if position < len(self.heads):
                aux.append(self.heads[position](x))
        return self.fc(torch.flatten(self.avgpool(x), 1)), aux

    @property
    def stage_widths(self) -> list[int]:
        """Channels after each stage. Every ResNet here doubles them from stage to stage."""
        last = len(self.stage_names) - 1
        return [self.fc.in_features >> (last - position) for position in range(last + 1)]


def build(
    name: str = "resnet50",
    num_classes: int = 1000,
    heads: str = "light",
    pretrained: str | None = None,
    stem: str = "imagenet",
    width: int | None = None,
) -> Backbone:
    """Build a backbone with its auxiliary heads, in float32 on the CPU.

    The initial weights follow torch's global seed alone. The backbone is drawn before the heads, so runs with one seed
    and different heads start from the same backbone.

    Args:
        name: one of BACKBONES. `resnet20` is He et al.'s CIFAR net with its own 3x3 stem; `stem` does not apply to it.
        num_classes: K, at least 2.
        heads: "light" (under +2 % MACs on ResNet-50 at 224 px), "bottleneck" (as released, +48 %) or "none".
        pretrained: a local file (torch state_dict or .safetensors), or a name of torchvision's weights for this
            backbone ("IMAGENET1K_V2", "DEFAULT"), which torchvision downloads. The classifier `fc` is taken over only
            if its number of classes is K; the heads are never loaded.
        stem: "imagenet" (7x7 stride 2, max-pool) or "small" (3x3 stride 1, no max-pool, for images of about 32 pixels).
        width: channels of the first stage, of resnet10 (64 unless given) and resnet20 (16); the others follow it.

    Raises:
        InputError: an unknown name or value, or pretrained weights that cannot be read or do not fit.
    """
    _choose("name", name, BACKBONES)
    _choose("stem", stem, STEMS)
    if num_classes < 2:
        raise InputError(f"num_classes = {num_classes}: a classifier needs at least 2 classes; check the manifest")
    net = Backbone(_trunk(name, num_classes, stem, width))
    made = build_heads(heads, net.stage_widths, net.conv1.out_channels, num_classes)
    if pretrained is not None:
        load_pretrained(net, name, pretrained)
    net.heads = made
    return net


def least_image(name: str, stem: str) -> int:
    """Return the least height and width, in pixels, of which more than one reaches the last stage.

    Of one pixel, its first 3x3 convolution, of stride 2, sees nothing with eight of nine weights. Their gradient is 0;
    on a CPU, in bfloat16, torch 2.15 (oneDNN) leaves it unwritten, and what lay in that memory trains the network.
    """
    if name == "resnet20":
        return 3
    return 5 if stem == "small" else 17


def _trunk(name: str, num_classes: int, stem: str, width: int | None) -> nn.Module:
    if name in _OWN:
        trunk: nn.Module = _OWN[name](num_classes) if width is None else _OWN[name](num_classes, width)
    elif width is None:
        trunk = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    else:
        raise InputError(f"width = {width} in [model]: {name} has its own; drop it, or name {' or '.join(_OWN)}")
    if stem == "small" and name != "resnet20":
        conv1 = trunk.conv1
        assert isinstance(conv1, nn.Conv2d)
        trunk.conv1 = nn.Conv2d(3, conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(trunk.conv1.weight, mode="fan_out", nonlinearity="relu")
        trunk.maxpool = nn.Identity()
    return trunk


def _choose(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value in choices:
        return
    near = difflib.get_close_matches(value, choices, n=1)
    hint = f'did you mean "{near[0]}"?' if near else "choose one of"
    raise InputError(f'{key} = "{value}" in [model]: {hint} ({", ".join(choices)})')
