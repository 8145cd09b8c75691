"""ResNet-10: one basic block in each of the four stages, at any width; for small data and slow machines."""

from torch import nn
from torchvision.models.resnet import BasicBlock

WIDTH = 64


class ResNet10(nn.Module):
    """The layers of torchvision's ResNet-18 with one block a stage instead of two, under the same names.

    The stages have `width`, 2, 4 and 8 times `width` channels; at 64 it is half a ResNet-18. He et al. 2016, table 1,
    for the blocks and the projection shortcuts; initialised as torchvision does.
    """

    def __init__(self, num_classes: int, width: int = WIDTH) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(BasicBlock(width, width))
        self.layer2 = _halving(width)
        self.layer3 = _halving(2 * width)
        self.layer4 = _halving(4 * width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _halving(channels: int) -> nn.Sequential:
    shortcut = nn.Sequential(nn.Conv2d(channels, 2 * channels, 1, stride=2, bias=False), nn.BatchNorm2d(2 * channels))
    return nn.Sequential(BasicBlock(channels, 2 * channels, stride=2, downsample=shortcut))
