"""The auxiliary classifiers after the first three stages of a backbone."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from shards.errors import InputError

HEAD_KINDS = ("light", "bottleneck", "none")
# After stages 1, 2, 3: all three pool to the map of stage 4 (docs/method.md).
KERNELS = (8, 4, 2)


class AuxiliaryHead(nn.Module):
    """One auxiliary classifier: feature map [B, C, H, W] -> logits [B, K].

    1x1 convolution to `middle`, k x k convolution with stride k, 1x1 convolution to `out`, each followed by BatchNorm
    and ReLU; global average pool; linear. Source: the released code of ALASCA (docs/method.md, row "heads").

    A map that is smaller than k is padded with zeros around its centre up to k, so that the head gives one position
    instead of failing; a remainder of H or W over a multiple of k is dropped at the right and at the bottom.
    """

    def __init__(self, channels: int, middle: int, out: int, kernel: int, num_classes: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.reduce = nn.Conv2d(channels, middle, 1, bias=False)
        self.reduce_norm = nn.BatchNorm2d(middle)
        self.pool = nn.Conv2d(middle, middle, kernel, stride=kernel, bias=False)
        self.pool_norm = nn.BatchNorm2d(middle)
        self.expand = nn.Conv2d(middle, out, 1, bias=False)
        self.expand_norm = nn.BatchNorm2d(out)
        self.fc = nn.Linear(out, num_classes)
        for convolution in (self.reduce, self.pool, self.expand):
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits [B, K] for a feature map [B, C, H, W]."""
        x = F.relu(self.reduce_norm(self.reduce(features)))
        # Pad after the ReLU, as the convolution's own padding would: before it, BatchNorm would average the zeros in.
        x = F.relu(self.pool_norm(self.pool(self._at_least_one_window(x))))
        x = F.relu(self.expand_norm(self.expand(x)))
        return self.fc(x.mean(dim=(2, 3)))

    def _at_least_one_window(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = (max(0, self.kernel - size) for size in x.shape[-2:])
        if rows == 0 and columns == 0:
            return x
        return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def head_widths(kind: str, stem_width: int, final_width: int) -> tuple[int, int]:
    """Return (middle, out), the channels inside one head of `kind`.

    "bottleneck": out = C_out, middle = C_out / 4, where C_out is the width of the backbone's last stage (512 for
    basic blocks, 2048 for bottleneck blocks, 64 for ResNet-20). As released: +48 % MACs on ResNet-50 at 224 px.

    "light": the same shape, middle = 3/4 of the stem's width and out = 6 times it (but never above C_out): 48 and 384
    for the torchvision nets, 12 and 64 for ResNet-20. On ResNet-50 at 224 px with 1,000 classes this is the widest
    such head, in steps of 8 for the middle, that adds less than 2 % MACs. The stem's width is the measure because the
    first head, on the largest map, costs the most, and its map has that many channels or 4 times as many.
    """
    assert kind in ("light", "bottleneck"), kind
    if kind == "bottleneck":
        return final_width // 4, final_width
    return 3 * stem_width // 4, min(6 * stem_width, final_width)


def build_heads(kind: str, stage_widths: Sequence[int], stem_width: int, num_classes: int) -> nn.ModuleList:
    """Return the heads for a backbone whose stages give `stage_widths` channels; an empty list for kind "none".

    Raises:
        InputError: `kind` is not one of HEAD_KINDS.
    """
    if kind not in HEAD_KINDS:
        raise InputError(f'heads = "{kind}" in [model]: choose one of {", ".join(HEAD_KINDS)}')
    if kind == "none":
        return nn.ModuleList()
    middle, out = head_widths(kind, stem_width, stage_widths[-1])
    # zip stops at three: a fourth branch would sit on the last stage and repeat the main classifier.
    return nn.ModuleList(
        AuxiliaryHead(channels, middle, out, kernel, num_classes)
        for channels, kernel in zip(stage_widths, KERNELS, strict=False)
    )
