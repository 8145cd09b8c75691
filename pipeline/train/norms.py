"""How steep the network is: norms of the main logits' Jacobians, estimated now and then while it trains."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call

from pipeline.data.pixels import normalise
from pipeline.method.lipschitz import random_directions
from pipeline.model.pair import first_network
from pipeline.train import dist

IMAGES = 8
"""Images of an estimate, if a step has no more lanes."""

# A trained Jacobian penalty draws its directions from the run's seed: measured along those it would look too good.
_STREAM = 0x4E6F726D << 32


class JacobianNorms:
    """Root mean square, over a few images of a step, of the Frobenius norms of d z / d x and d z / d h_s.

    z are the logits of the main head, x the normalised pixels as the network sees them, h_s the output of stage s.
    ||J||_F^2 = K * E ||J^T v||^2 for v uniform on the unit sphere (Hoffman, Roberts, Yaida 2019, arXiv 1908.02729);
    one v an image, a pure function of (seed, epoch, position). One backward serves x and every stage.

    The first images of every lane are used, in evaluation mode with the running statistics that an evaluation would
    use, in float32: so the images do not touch each other, and neither the number of ranks nor the precision of
    training moves the figure (up to rounding, and the running statistics' own). Training is left as it was, bit for
    bit: no buffer, gradient, mode or random state changes.

    Args:
        module: the network, on its device, with stages named layer1, layer2, ...; of a pair, the first is measured.
        seed: of the run.
        lanes: of a step, over all ranks; together they give `IMAGES` images, and one each if they are more.
        channels_last: as the module lies.
    """

    def __init__(self, module: nn.Module, seed: int, lanes: int, channels_last: bool) -> None:
        self._module, self._seed, self._channels_last = first_network(module), seed ^ _STREAM, channels_last
        self._per_lane = max(1, IMAGES // lanes)
        self._kept: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def take(self, images: torch.Tensor, positions: torch.Tensor, valid: torch.Tensor) -> None:
        """Keep what `measure` needs of one lane's micro-batch, until then.

        Args:
            images: uint8 [B, H, W, 3], on the device.
            positions: [B] int64, places in the sorted active ids.
            valid: [B] bool; other images count nowhere.
        """
        count = self._per_lane
        self._kept.append((images[:count], positions[:count], valid[:count]))

    def measure(self, epoch: int) -> dict[str, torch.Tensor]:
        """Sums over this rank's valid images, 0-dim on the device: squared norms by name, and "images".

        Called by all ranks together, between steps. Waits for nothing.
        """
        images, positions, valid = (torch.cat(parts) for parts in zip(*self._kept, strict=True))
        self._kept = []
        x = normalise(images, self._channels_last)
        classes = self._module.get_submodule("fc").out_features
        assert isinstance(classes, int)
        directions = random_directions(self._seed, epoch, positions, 1, classes)[0]
        with _evaluating(self._module):
            squares = squared_norms(self._module, x, directions, _common_statistics(self._module))
        return {"images": valid.sum(), **{name: torch.where(valid, v, 0.0).sum() for name, v in squares.items()}}

    def record(self, epoch: int) -> dict[str, float]:
        """`measure`, over all ranks: fields of a `norms` record. Waits for the device.

        Returns:
            "images" (how many the estimate is from), "input", "hidden/stage1", ...; NaN where no image decoded.
        """
        sums = self.measure(epoch)
        total = dist.sum_over_ranks(torch.stack([value.double() for value in sums.values()]).cpu())
        images, *squares = total.tolist()
        names = [name for name in sums if name != "images"]
        return {"images": images} | {
            name: math.sqrt(square / images) if images else math.nan
            for name, square in zip(names, squares, strict=True)
        }


def squared_norms(
    module: nn.Module, x: torch.Tensor, directions: torch.Tensor, buffers: dict[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Return K * ||d <z_n, v_n> / d x_n||^2 as "input" and the same for stage s as "hidden/stage<s>", each [B].

    Args:
        module: x -> (main logits [B, K], anything), in evaluation mode: nothing couples its samples.
        x: [B, 3, H, W] floats.
        directions: v, [B, K], of length 1.
        buffers: stand in for the module's own of the same names.
    """
    assert not module.training
    edges: dict[str, GradientEdge] = {}

    def watching(name: str) -> Any:
        def watch(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
            edges[name] = get_gradient_edge(output)  # not the tensor: what follows may change it in place

        return watch

    stages = [(name, child) for name, child in module.named_children() if name.startswith("layer")]
    with ExitStack() as stack:
        for name, stage in stages:
            handle = stage.register_forward_hook(watching(name.replace("layer", "hidden/stage")))
            stack.callback(handle.remove)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(x.device.type, enabled=False))
        x = x.detach().requires_grad_()
        edges["input"] = get_gradient_edge(x)
        main, _ = functional_call(module, buffers or {}, (x,))
        gradients = torch.autograd.grad((main * directions).sum(), list(edges.values()))
    classes = directions.shape[1]
    return {name: classes * g.square().flatten(1).sum(dim=1) for name, g in zip(edges, gradients, strict=True)}


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and each part's own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@torch.no_grad()
def _common_statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    """Mean over the ranks of every running statistic, as evaluation uses; the module keeps this rank's own."""
    own = {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    if not own or torch.distributed.get_world_size() == 1:
        return {}
    flat = torch.cat([buffer.flatten() for buffer in own.values()])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    parts = flat.split([buffer.numel() for buffer in own.values()])
    return {name: part.view_as(own[name]) for name, part in zip(own, parts, strict=True)}
