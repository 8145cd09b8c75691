"""Where the pixels of micro-batches lie on their way from a data worker to the run."""

import math
from collections import deque

import numpy as np
import torch
from torch.utils.data import get_worker_info

AHEAD = 4  # micro-batches that a worker prepares beyond the one that was handed over last


class Frames:
    """Memory for micro-batches; in a data worker it is shared, and used again in turn.

    Fresh shared memory costs a page fault for every 4 KB: on a virtual machine that was 12 ms for 64 views of 224
    pixels, as much as decoding nine of them. A worker is given its next key when one of its micro-batches is handed
    over, so at most `AHEAD` of them are on their way and one is being copied by `Arrivals`: with one place more than
    `AHEAD`, none is written to before it was copied.
    """

    def __init__(self) -> None:
        self._places: list[torch.Tensor] = []
        self._turn = 0

    def take(self, *shape: int) -> torch.Tensor:
        """Memory for uint8 of a shape; what it holds is not defined."""
        if get_worker_info() is None:
            return _fresh(*shape)
        if len(self._places) <= AHEAD:
            self._places.append(torch.empty(0, dtype=torch.uint8))
        number, size = self._turn % (AHEAD + 1), math.prod(shape)
        self._turn += 1
        if self._places[number].numel() < size:
            self._places[number] = torch.empty(size, dtype=torch.uint8).share_memory_()
        return self._places[number][:size].view(shape)


class Arrivals:
    """Takes what lies in the memory of `workers` out of it, before they write there again."""

    def __init__(self, workers: int) -> None:
        # While the places are held they stay mapped here, too.
        self._held: deque[torch.Tensor] = deque(maxlen=workers * (AHEAD + 1))

    def copy(self, pixels: torch.Tensor) -> torch.Tensor:
        """The same in memory that nobody writes to again."""
        self._held.append(pixels)
        fresh = _fresh(*pixels.shape)
        np.copyto(fresh.numpy(), pixels.numpy())  # in this thread: torch's copy would take all cores from the workers
        return fresh


def _fresh(*shape: int) -> torch.Tensor:
    # numpy asks the system for huge pages, which torch does not: it takes a quarter of the time.
    return torch.from_numpy(np.empty(shape, dtype=np.uint8))
