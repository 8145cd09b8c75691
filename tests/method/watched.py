"""A network that penalties watch, and the same written out, in float64."""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

CLASSES = 4


class Net(nn.Module):
    """A stem, one block with an identity and one with a convolution as shortcut; their ReLUs work in place."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(BasicBlock(4, 4))
        shortcut = nn.Sequential(nn.Conv2d(4, 6, 1, stride=2, bias=False), nn.BatchNorm2d(6))
        self.layer2 = nn.Sequential(BasicBlock(4, 6, stride=2, downsample=shortcut))
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x):
        x = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        return self.fc(x.mean(dim=(2, 3))), []


def made(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    net = Net().to(dtype)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):  # scales of 1 and shifts of 0 would hide what is done with them
            nn.init.normal_(layer.weight, 1.0, 0.5)
            nn.init.normal_(layer.bias, 0.0, 0.5)
    return net


def drawn(batch=5, size=6, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, size, size, generator=generator, dtype=dtype)
    return images, torch.randint(0, CLASSES, (batch,), generator=generator)


def everyone(batch):
    return torch.arange(batch), torch.ones(batch, dtype=torch.bool)


def by_hand(net, x):
    """Logits, and what each BatchNorm of the blocks gives before its scale and shift, as a node of the graph."""
    hidden = []

    def norm(layer, x):
        centred = x - x.mean(dim=(0, 2, 3), keepdim=True)
        h = centred / (centred.square().mean(dim=(0, 2, 3), keepdim=True) + layer.eps).sqrt()
        hidden.append(h)
        return h * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)

    x = norm(net.bn1, net.conv1(x)).clamp(min=0)
    hidden.clear()
    for block in (net.layer1[0], net.layer2[0]):
        y = norm(block.bn2, block.conv2(norm(block.bn1, block.conv1(x)).clamp(min=0)))
        x = (y + (x if block.downsample is None else norm(block.downsample[1], block.downsample[0](x)))).clamp(min=0)
    return net.fc(x.mean(dim=(2, 3))), hidden


def har_by_hand(net, x, y, reduction="sum"):
    """r, [B], sample by sample."""
    logits, hidden = by_hand(net, x)
    gradients = torch.autograd.grad(F.cross_entropy(logits, y, reduction=reduction), hidden, create_graph=True)
    assert len(gradients) == 5
    return torch.stack([sum((g[n] ** 2).sum().sqrt() for g in gradients) for n in range(len(x))])


def gradients(value, net):
    found = torch.autograd.grad(value, list(net.parameters()), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(net.parameters(), found, strict=True)]
