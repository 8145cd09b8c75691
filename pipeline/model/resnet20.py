"""ResNet-20 for images of about 32 pixels (He et al. 2016, section 4.2)."""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

WIDTH = 16
BLOCKS = 3


class PaddedShortcut(nn.Module):
    """Option A of He et al. 2016: every second pixel, new channels are zeros; no parameters.

    [B, C, H, W] -> [B, C + new_channels, ceil(H / 2), ceil(W / 2)].
    """

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.new_channels = new_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Halve the map and append the zero channels."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.new_channels))


class ResNet20(nn.Module):
    """The layers of ResNet-20 under torchvision's names; `pipeline.model.backbone` runs them.

    3x3 convolution to 16 channels, three stages of three basic blocks with 16, 32 and 64 channels, global average pool,
    linear; parameter-free shortcuts (option A). 269,722 parameters at 10 classes. Another `width` than 16 changes all
    channels in proportion.
    """

    def __init__(self, num_classes: int, width: int = WIDTH) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity()
        self.layer1 = _stage(width, width)
        self.layer2 = _stage(width, 2 * width)
        self.layer3 = _stage(2 * width, 4 * width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _stage(channels: int, width: int) -> nn.Sequential:
    if channels == width:
        first = BasicBlock(channels, width)
    else:
        first = BasicBlock(channels, width, stride=2, downsample=PaddedShortcut(width - channels))
    return nn.Sequential(first, *(BasicBlock(width, width) for _ in range(BLOCKS - 1)))
