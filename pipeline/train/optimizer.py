"""SGD that leaves weights and momentum as they are where a flag on the device says so."""

from collections.abc import Iterable

import torch
from torch import nn

from pipeline.config import Optim


def sgd(parameters: Iterable[nn.Parameter], optim: Optim) -> torch.optim.SGD:
    """SGD as configured, fused: that one alone heeds `optimizer.found_inf` (1 = change nothing), without a wait."""
    return torch.optim.SGD(
        _groups(parameters, optim), lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov, fused=True
    )


def begin_momentum(optimizer: torch.optim.SGD) -> None:
    """Start from zeros, once the parameters lie as they will.

    The same first update as without (momentum * 0 + gradient), but torch's own buffers are memory that nobody has
    written yet when `found_inf` skips the first step. Loading a state also comes to lie and to work as this one does.
    """
    for group in optimizer.param_groups:
        if group["momentum"]:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    optimizer.register_load_state_dict_post_hook(_loaded)


@torch.no_grad()
def _loaded(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        group["fused"] = True  # as loaded, it is what it was in the run that saved
        for parameter in group["params"]:
            momentum = optimizer.state[parameter].get("momentum_buffer")
            # The fused update walks through memory: momentum of another layout would meet the wrong weights.
            if momentum is not None:
                optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)


def _groups(parameters: Iterable[nn.Parameter], optim: Optim) -> list[dict[str, object]]:
    """Vectors are norms and biases; they carry weight decay only if asked (Goyal et al. 2017, He et al. 2019)."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter in parameters:
        (matrices if parameter.ndim > 1 else vectors).append(parameter)
    decay = optim.weight_decay
    return [
        {"params": matrices, "weight_decay": decay},
        {"params": vectors, "weight_decay": decay if optim.decay_norm_and_bias else 0.0},
    ]
