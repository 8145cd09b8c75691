"""Explicit Lipschitz penalties: norms of gradients, to be differentiated once more.

The functions are the mathematics. `HiddenGradients` and `InputJacobian` watch a module's forward for what these need,
so that whoever trains it calls them as a `Penalty` and knows neither. They never wait for the device. Gradients of
gradients are wrong through DeepSpeed's own forward and refused by torch.compile: call the module itself, in eager mode.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from shards.errors import InputError


class Penalty(Protocol):
    """What is added to the loss of a sample; belongs to the module's last forward in training mode."""

    def __call__(
        self,
        main: torch.Tensor,
        target: torch.Tensor,
        positions: torch.Tensor,
        valid: torch.Tensor,
        epoch: float,
    ) -> torch.Tensor:
        """Return the unweighted penalties [B], differentiable in the weights.

        Args:
            main: [B, K] logits of the main head, as that forward gave them or a function of them.
            target: [B] int64, in 0 .. K-1 everywhere.
            positions: [B] int64, places in the sorted active ids.
            valid: [B] bool; the others' values mean nothing and they are in nobody's value, be their logits NaN.
            epoch: epochs completed, from 0.
        """
        ...


def hidden_gradient_penalty(
    loss: torch.Tensor,
    hidden: Sequence[torch.Tensor] | Sequence[GradientEdge],
    scales: Sequence[torch.Tensor | None] | None = None,
) -> torch.Tensor:
    """Return r_n = sum over layers j of ||d loss / d h_j[n]||_2, [B], norms and not their squares.

    HAR: Cao, Chen, Lu, Arechiga, Gaidon, Ma, "Heteroskedastic and Imbalanced Deep Learning with Adaptive
    Regularization", ICLR 2021 (arXiv 2006.15766), for h_j the output of a BatchNorm BEFORE its scale w and shift b. As
    out = w * h + b, d loss / d h = w * d loss / d out: give the outputs as `hidden` and w as `scales`.

    With `loss` a SUM over samples, r_n depends on the batch through BatchNorm alone. The authors take the mean over
    their 128, which makes theirs 128 times smaller: our weight = published reg_weight / 128 (0.1 -> 0.00078).

    A norm that is exactly 0 has gradient 0. Sums of squares are formed in float32, or in the gradients' own dtype if
    wider.

    Args:
        loss: 0-dim.
        hidden: tensors [B, C_j, H_j, W_j] that `loss` depends on, or their places in the graph.
        scales: [C_j] or None (1) for each of `hidden`. None: all are 1.
    """
    scales = [None] * len(hidden) if scales is None else scales
    assert len(hidden) == len(scales) > 0, (len(hidden), len(scales))
    norms = []
    for gradient, scale in zip(torch.autograd.grad(loss, hidden, create_graph=True), scales, strict=True):
        # By channels first, so that the scale multiplies [B, C] and no second copy of the maps is made.
        # Not vector_norm: its backward masks whole maps against a norm of 0, a tenth of a step. Not in float32 before
        # the sum: that would keep a copy of each map.
        squares = gradient.square().sum(dim=(2, 3), dtype=_wide(gradient))
        squares = (squares if scale is None else squares * scale.square()).sum(dim=1)
        positive = squares != 0  # so that NaN stays NaN
        norms.append(torch.where(positive, squares, 1.0).sqrt() * positive)
    return torch.stack(norms).sum(dim=0)


def jacobian_penalty(logits: torch.Tensor, inputs: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Return K / 2 * mean over p of ||d sum_m <z_m, v_pm> / d x_n||^2, [B]; its mean over v is ||d z / d x_n||_F^2 / 2.

    Hoffman, Roberts, Yaida, "Robust Learning with Jacobian Regularization", 2019 (arXiv 1908.02729), algorithm 1; their
    weight in the README is 0.01. As there, BatchNorm is not taken apart: z are the logits of the whole batch, and x_n
    also moves those of other samples. Sums are formed as in `hidden_gradient_penalty`.

    Args:
        logits: z, [B, K].
        inputs: x, [B, ...], that `logits` depend on.
        directions: v, [P, B, K], of length 1, such as `random_directions` gives. The K unit vectors, where nothing
            couples the samples, give the exact norm.
    """
    projections, _, classes = directions.shape
    wide = logits.to(_wide(logits))
    squares = []
    for direction in directions:
        (gradient,) = torch.autograd.grad((wide * direction).sum(), inputs, create_graph=True)
        squares.append(gradient.to(_wide(gradient)).square().flatten(1).sum(dim=1))
    return torch.stack(squares).sum(dim=0) * (0.5 * classes / projections)


def class_weights(error: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Return the weights of HAR's penalty per class, [K] float32: error^0.6 / count^0.4, divided by the largest.

    The two-stage estimate of Cao et al. 2021: train on each half of the training set without a penalty,
    and take each class's error, on its given labels, on the other half. Uniform weights are all 1, and so is the result
    where no class has an error. A class without samples gets 0.

    Args:
        error: [K], in 0 .. 1; anything for a class without samples.
        count: [K], number of training samples of each class.

    Raises:
        InputError: an error outside 0 .. 1, or not a number, in a class that has samples; a negative count.
    """
    error, count = error.double().cpu(), count.double().cpu()
    assert error.shape == count.shape and error.ndim == 1, (error.shape, count.shape)
    for k, (e, n) in enumerate(zip(error.tolist(), count.tolist(), strict=True)):
        if not n >= 0:
            raise InputError(f"class {k} has {n} samples: class weights need counts of 0 or more")
        if n > 0 and not 0.0 <= e <= 1.0:
            raise InputError(f"class {k} has error {e}: class weights need the share of wrong predictions, from 0 to 1")
    weights = torch.where(count > 0, error**0.6 / count**0.4, 0.0)
    if not weights.any():
        return (count > 0).float()
    return (weights / weights.max()).float()


class HiddenGradients:
    """HAR (`hidden_gradient_penalty`) on every BatchNorm of a module's residual blocks, by forward hooks.

    Those are all BatchNorms below the children named layer1, layer2, ...: not the stem's and not those of auxiliary
    heads. The one in a shortcut's downsample branch counts: it is a BatchNorm output inside a block. (The authors'
    networks have none: their shortcuts are without parameters, as in our resnet20.) The loss is the plain cross entropy
    of the main head with the given label, whatever base loss is trained, summed over valid samples.

    Args:
        module: the network, already on its device.
        class_weights: [K], see the function `class_weights`. None: uniform, all 1.
    """

    def __init__(self, module: nn.Module, class_weights: torch.Tensor | None = None) -> None:
        stages = [child for name, child in module.named_children() if name.startswith("layer")]
        layers = [layer for stage in stages for layer in stage.modules() if isinstance(layer, _BatchNorm)]
        assert layers, "no BatchNorm in layer1, layer2, ...: this is no residual network"
        self._count = len(layers)
        self._weights = class_weights
        if class_weights is not None:
            self._weights = class_weights.to(next(module.parameters()).device)
        self._edges: list[GradientEdge] = []
        self._scales: list[torch.Tensor | None] = []
        module.register_forward_pre_hook(self._start)
        for layer in layers:
            layer.register_forward_hook(self._watch)

    def _start(self, module: nn.Module, args: Any) -> None:
        self._edges, self._scales = [], []

    def _watch(self, layer: _BatchNorm, args: Any, output: torch.Tensor) -> None:
        if layer.training and torch.is_grad_enabled():
            # The place in the graph, not the tensor: the blocks go on in place (ReLU, +=), and it would be theirs.
            self._edges.append(get_gradient_edge(output))
            self._scales.append(layer.weight)

    def __call__(
        self,
        main: torch.Tensor,
        target: torch.Tensor,
        positions: torch.Tensor,
        valid: torch.Tensor,
        epoch: float,
    ) -> torch.Tensor:
        """Return w_y * r, [B]; see `Penalty`. What was kept of the forward is let go."""
        edges, scales = self._edges, self._scales
        self._edges, self._scales = [], []
        assert len(edges) == self._count, "one forward in training mode comes first"
        logits = torch.where(valid.unsqueeze(1), main.to(_wide(main)), 0.0)
        loss = torch.where(valid, F.cross_entropy(logits, target, reduction="none"), 0.0).sum()
        penalties = hidden_gradient_penalty(loss, edges, scales)
        return penalties if self._weights is None else penalties * self._weights[target]


class InputJacobian:
    """`jacobian_penalty` between a module's first argument and its main logits, by a forward hook.

    The input is what the network sees: normalised pixels. Directions follow `seed`, the epoch and the sample alone, so
    they are the same for any number of processes and for a resumed run.

    Args:
        module: the network.
        n_proj: directions per sample, at least 1; each costs about as much as a step.
        seed: of the directions, 0 or more.

    Raises:
        InputError: `n_proj` is below 1.
    """

    def __init__(self, module: nn.Module, n_proj: int = 1, seed: int = 0) -> None:
        if n_proj < 1:
            raise InputError(f"n_proj = {n_proj} in [method.jacobian]: must be 1 or more (default 1)")
        self._n_proj, self._seed = n_proj, seed
        self._inputs: torch.Tensor | None = None
        module.register_forward_pre_hook(self._watch)

    def _watch(self, module: nn.Module, args: Any) -> Any:
        self._inputs = None
        if not (module.training and torch.is_grad_enabled()):
            return None
        inputs, *rest = args
        self._inputs = inputs if inputs.requires_grad else inputs.detach().requires_grad_()
        return self._inputs, *rest

    def __call__(
        self,
        main: torch.Tensor,
        target: torch.Tensor,
        positions: torch.Tensor,
        valid: torch.Tensor,
        epoch: float,
    ) -> torch.Tensor:
        """Return the penalties [B]; see `Penalty`. What was kept of the forward is let go."""
        inputs, self._inputs = self._inputs, None
        assert inputs is not None, "one forward in training mode comes first"
        directions = random_directions(self._seed, int(epoch), positions, self._n_proj, main.shape[1])
        main = torch.where(valid.unsqueeze(1), main, 0.0)
        return jacobian_penalty(main, inputs, directions)


def random_directions(seed: int, epoch: int, positions: torch.Tensor, projections: int, classes: int) -> torch.Tensor:
    """Return vectors of length 1, uniform on the sphere, float32 [projections, B, classes].

    Each is a pure function of (seed, epoch, its position, number of the projection): of 32-bit words that hash these,
    made normal by Box and Muller's transform and then divided by their length. They are computed where `positions`
    [B] are; devices agree up to rounding.
    """
    key = 0
    for word in (seed, seed >> 32, epoch):
        key = _mixed((key ^ word & _LOW) + _GOLDEN & _LOW)
    rows = _mixed(positions & _LOW ^ key)
    columns = _mixed(torch.arange(2 * projections * classes, device=positions.device) + _GOLDEN & _LOW)
    words = _mixed(rows.unsqueeze(1) ^ columns)
    # In (0, 1]: the logarithm needs no 0.
    radius, angle = (((words >> 8).float() + 0.5) * 2.0**-24).chunk(2, dim=1)
    normal = (-2.0 * radius.log()).sqrt() * (2.0 * math.pi * angle).cos()
    return F.normalize(normal.view(len(positions), projections, classes).transpose(0, 1), dim=2)


_LOW = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9
_Word = TypeVar("_Word", int, torch.Tensor)


def _mixed(words: _Word) -> _Word:
    """Scramble 32-bit words, one to one, with full avalanche (constants: Wellons, hash-prospector).

    They are held in 64 bits with sign; both factors are below 2^31, so no product overflows.
    """
    words = (words ^ words >> 16) * 0x21F0AAAD & _LOW
    words = (words ^ words >> 15) * 0x735A2D97 & _LOW
    return words ^ words >> 15


def _wide(values: torch.Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)
