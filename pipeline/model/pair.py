"""Two networks that learn from each other, as one module: what steps, saves and evaluates one serves both."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from pipeline.model.backbone import Backbone
from shards.errors import InputError


class Pair(nn.Module):
    """Two backbones of one kind: x [B, 3, H, W] -> (main logits [2, B, K], list of auxiliary logits [2, B, K]).

    Both see the same, or each its own: x [2, B, 3, H, W].
    They share nothing, so no gradient of one's logits reaches the other. Names of parameters start with `network1.` and
    `network2.`.
    """

    def __init__(self, first: Backbone, second: Backbone) -> None:
        super().__init__()
        self.network1, self.network2 = first, second

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the logits of both, network by network."""
        own, its = (x, x) if x.ndim == 4 else x
        (main, aux), (other, others) = self.network1(own), self.network2(its)
        return torch.stack([main, other]), [torch.stack(heads) for heads in zip(aux, others, strict=True)]


def build_networks(make: Callable[[], Backbone], networks: int, seed: int) -> Backbone | Pair:
    """Make one network, or a pair with weights drawn apart. The first one's are those that it would have alone.

    Args:
        make: draws the weights from torch's global generator, which is seeded here.
        networks: 1 or 2.
        seed: 0 .. 2^32 - 1.

    Raises:
        InputError: both are the same, so that they would stay the same.
    """
    torch.manual_seed(seed)
    first = make()
    if networks == 1:
        return first
    # Not seed + 2^32: torch's generator on the CPU looks at 32 bits. Seeded anew, so that heads do not move it.
    torch.manual_seed(int(np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(1)[0]))
    second = make()
    if torch.equal(first.fc.weight, second.fc.weight):
        raise InputError(
            "model.pretrained holds a classifier of as many classes, so both networks of method.pair would begin, and"
            " stay, the same: leave fc out of the file, or drop one of the two keys"
        )
    return Pair(first, second)


def first_network(module: nn.Module) -> nn.Module:
    """The first network of a pair; any other module is itself the one."""
    return module.network1 if isinstance(module, Pair) else module


def separate(main: torch.Tensor, aux: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
    """Return main logits [B, K] and auxiliary ones, of one network from [B, K], of each from [networks, B, K]."""
    if main.ndim == 2:
        return [(main, list(aux))]
    return [(logits, [head[number] for head in aux]) for number, logits in enumerate(main)]
