"""A micro-batch on its way from a data worker to the device."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Bad:
    """A sample that could not be decoded, and why."""

    sample_id: int
    reason: str


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    A sample that did not decode keeps its slot with `valid` False and the pixels of its neighbour, so that BatchNorm
    sees real data and every other sample stays where it was.
    """

    images: torch.Tensor  # uint8 [B, H, W, 3]; where a method needs V > 1 views of each image, [V, B, H, W, 3]
    labels: torch.Tensor  # int64 [B]
    positions: torch.Tensor  # int64 [B], places in the sorted active ids
    valid: torch.Tensor  # bool [B]
    bad: tuple[Bad, ...] = ()

    @property
    def first_view(self) -> torch.Tensor:
        """The first (or only) view of each image, uint8 [B, H, W, 3]."""
        return self.images if self.images.ndim == 4 else self.images[0]

    def _map(self, move: Any) -> "Batch":
        tensors = {f.name: move(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "bad"}
        return Batch(**tensors, bad=self.bad)

    def __reduce__(self) -> tuple[Any, ...]:
        # Each tensor travels through shared memory and a descriptor of its own: too much for a few numbers.
        few = {name: getattr(self, name).numpy() for name in ("labels", "positions", "valid")}
        return _arrived, (self.images, few, self.bad)

    def pin_memory(self) -> "Batch":
        """The same in page-locked memory; DataLoader calls this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> "Batch":
        """The same on a device, without waiting for the copy."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))


def _arrived(images: torch.Tensor, few: dict[str, NDArray[Any]], bad: tuple[Bad, ...]) -> Batch:
    return Batch(images, **{name: torch.from_numpy(values) for name, values in few.items()}, bad=bad)
