"""What a network costs: multiply-accumulates and parameters."""

import copy

import torch
from torch import nn


def macs(module: nn.Module, size: int) -> int:
    """Return the multiply-accumulates of one image [3, size, size] through `module`, forward, in evaluation mode.

    Counts convolutions and linear layers (biases, normalisation, activations and pooling are left out, as is usual for
    figures such as "4.09 GMACs" for ResNet-50 at 224 px). Runs a copy on the meta device: nothing is computed and
    `module` is not touched.
    """
    total = 0

    def count(layer: nn.Module, _inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += output.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            total += output.numel() * layer.in_features

    ghost = copy.deepcopy(module).to("meta").eval()
    for layer in ghost.modules():
        layer.register_forward_hook(count)
    with torch.no_grad():
        ghost(torch.empty(1, 3, size, size, device="meta"))
    return total


def parameters(module: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
