"""What all objectives of two networks share: each network's own losses and per-sample state."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from pipeline.data.batch import Batch
from pipeline.method.bank import SampleBank
from pipeline.method.objective import Losses, Objective


class TwoNetworks(ABC):
    """Two `Objective`s, each with state of its own; what is made of them is up to the class below this one.

    Args:
        first: of network 1, without penalty.
        second: of network 2, which shares no per-sample state with the first.
    """

    def __init__(self, first: Objective, second: Objective) -> None:
        assert first.penalty is None and second.penalty is None, "a penalty watches one network's forward"
        shared = {id(bank) for bank in first.banks.values()} & {id(bank) for bank in second.banks.values()}
        assert not shared, "a bank each"
        self.objectives = first, second

    @property
    def _named(self) -> dict[str, Objective]:
        return {f"network{number}": each for number, each in enumerate(self.objectives, 1)}

    @property
    def banks(self) -> dict[str, SampleBank]:
        """Per-sample state of both, by "network1/NAME" and "network2/NAME"."""
        return {f"{who}/{name}": bank for who, each in self._named.items() for name, bank in each.banks.items()}

    def inputs(self, batch: Batch, step: int, lane: int) -> torch.Tensor:
        """Return what the networks are to see; see `Objective.inputs`. Of their own each: [2, B, H, W, 3]."""
        return batch.images

    @abstractmethod
    def __call__(
        self,
        main: torch.Tensor,
        aux: Sequence[torch.Tensor],
        target: torch.Tensor,
        positions: torch.Tensor,
        valid: torch.Tensor,
        epoch: float,
    ) -> Losses:
        """Return the losses of one micro-batch; see `Objective`, but for the logits: [2, B, K], main and auxiliary."""

    def settle(self, skipped: torch.Tensor) -> None:
        """End a step; see `Objective.settle`."""
        for each in self.objectives:
            each.settle(skipped)

    def end_epoch(self, epochs: int) -> None:
        """After the last step of an epoch; see `Objective.end_epoch`."""
        for each in self.objectives:
            each.end_epoch(epochs)

    def state_dict(self) -> dict[str, Any]:
        """Return {"network1": state, "network2": state}."""
        return {who: each.state_dict() for who, each in self._named.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of an objective of the same kind.

        Raises:
            ValueError: it is of one network, or of other banks; see `Objective.load_state_dict`.
        """
        if set(state) != set(self._named):
            raise ValueError(f"the state holds {sorted(state) or 'nothing'}, this objective {sorted(self._named)}")
        for who, each in self._named.items():
            each.load_state_dict(state[who])
