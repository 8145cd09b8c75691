"""A copy of a state on the host, taken at once, that training may change the original under."""

import torch


class Snapshot:
    """Buffers for the tensors of a state, made once and used for every copy.

    On a GPU they are pinned, and `take` returns before they are filled: what the device is asked to do later comes
    after the copies, and `wait`, in any thread, returns when they are there.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}
        self._event: torch.cuda.Event | None = None

    @torch.no_grad()
    def take(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copy tensors, by name, into contiguous buffers on the host; those of the last time are overwritten."""
        for name, tensor in tensors.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                pinned = tensor.device.type == "cuda"
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
                self._buffers[name] = buffer
            buffer.copy_(tensor, non_blocking=True)
        if any(tensor.device.type == "cuda" for tensor in tensors.values()):
            self._event = torch.cuda.Event()
            self._event.record()
        return {name: self._buffers[name] for name in tensors}

    def wait(self) -> None:
        """Wait for the copies."""
        if self._event is not None:
            self._event.synchronize()
