"""Pixels of 8 bits -> the normalised floats a network takes, on whatever device they are."""

from functools import lru_cache

import torch

_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, as every torchvision weight expects
_STD = (0.229, 0.224, 0.225)


def normalise(images: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """Values in 0..255, [..., H, W, 3] -> float32 [..., 3, H, W] with ImageNet's mean and deviation taken out.

    They are uint8, or float where images were mixed. Done here and not in the workers: one byte a value crosses to the
    device instead of four.
    """
    mean, std = _constants(images.device)
    # The permuted view of [B, H, W, 3] already lies in memory as channels_last.
    layout = torch.channels_last if channels_last else torch.contiguous_format
    flat = images.flatten(0, -4).permute(0, 3, 1, 2)
    floats = flat.to(torch.float32, copy=True).sub_(mean).div_(std).contiguous(memory_format=layout)
    return floats if images.ndim == 4 else floats.unflatten(0, images.shape[:-3])


@lru_cache
def _constants(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of values in 0..255, [1, 3, 1, 1]; kept, since making them would wait for the device."""
    with torch.inference_mode(False):  # they outlive an evaluation that may ask first
        return tuple(torch.tensor(c, device=device).mul_(255).view(1, 3, 1, 1) for c in (_MEAN, _STD))  # type: ignore[return-value]
