"""Images in, logits out: a module in its precision and memory layout."""

from typing import Literal

import torch
from torch import nn

from pipeline.data.pixels import normalise
from shards.errors import InputError


class Network:
    """A module that lies on `device`, called with images as the loader makes them.

    Raises:
        InputError: a precision that the device does not have.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        precision: Literal["auto", "float32", "bfloat16"],
        channels_last: bool,
    ) -> None:
        self._module, self._device, self._channels_last = module, device, channels_last
        self._autocast = _autocast_dtype(precision, device)
        if channels_last:
            module.to(memory_format=torch.channels_last)

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return main logits [B, K] and a list of auxiliary logits [B, K], of two networks [2, B, K].

        Images lie on the device, values in 0..255, [B, H, W, 3]; or [2, B, H, W, 3], where each of two sees its own.
        """
        with torch.autocast(self._device.type, dtype=self._autocast, enabled=self._autocast is not None):
            outputs: tuple[torch.Tensor, list[torch.Tensor]] = self._module(normalise(images, self._channels_last))
        return outputs


def _autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Type of the matrix products; None for plain float32."""
    if device.type == "cpu":
        return torch.bfloat16 if precision == "bfloat16" else None
    has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bfloat16" and not has_bfloat16:
        name = torch.cuda.get_device_name(device)
        raise InputError(f"engine.precision = 'bfloat16': {name} has no bfloat16; set 'float32' or 'auto'")
    return torch.bfloat16 if has_bfloat16 and precision != "float32" else None
