"""Per-sample state of one rank: a dense array over the samples that live there."""

from typing import Any

import torch


class SampleBank:
    """Exponential moving averages for the positions start .. stop - 1, one row of `width` numbers each.

    Positions are those of `Plan.home(rank, world)`: places in the sorted active ids. A sample never leaves its rank, so
    the bank needs no communication. Rows start at zero and are stored in `dtype` on `device`; a bank on the CPU under
    a net on a GPU costs one synchronisation per update and per `settle`.
    """

    def __init__(
        self,
        start: int,
        stop: int,
        width: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        assert 0 <= start <= stop, (start, stop)
        assert width >= 1, width
        self.start = start
        self.stop = stop
        self.rows = torch.zeros(stop - start, width, dtype=dtype, device=device)
        self._unsettled: list[tuple[torch.Tensor, torch.Tensor]] = []  # of this step: indices, and the rows before it

    @torch.no_grad()
    def update(
        self, positions: torch.Tensor, values: torch.Tensor, momentum: float, valid: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Set row = momentum * row + (1 - momentum) * value, then return the rows as stored.

        Args:
            positions: [B] int64, in [start, stop), distinct over all updates until `settle`.
            values: [B, width], any float dtype; detached here.
            momentum: in [0, 1); 0 keeps the newest value alone.
            valid: [B] bool; rows of False stay untouched, whatever their values. None: all are valid.

        Returns:
            [B, width] float32 on the values' device. The sum is formed in float32 and then rounded to the bank's dtype.

        Raises:
            ValueError: a position outside the range. Only checked for positions on the CPU: on a GPU it would wait.
        """
        if positions.device.type == "cpu":
            self._check_range(positions)
        device = self.rows.device
        index = positions.to(device) - self.start
        old = self.rows.index_select(0, index)
        most = torch.finfo(self.rows.dtype).max  # float16 ends at 65,504, where extreme logits do not
        moved = momentum * old.float() + (1.0 - momentum) * values.to(device).float()
        new = torch.where(moved.isfinite(), moved.clamp(-most, most), moved).to(self.rows.dtype)
        if valid is not None:
            # A select, not a product: 0 * NaN of an undecodable sample would still be NaN.
            new = torch.where(valid.to(device).unsqueeze(1), new, old)
        self.rows.index_copy_(0, index, new)
        self._unsettled.append((index, old))
        return new.float().to(values.device)

    @torch.no_grad()
    def read(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the rows of positions, int64 [B] in [start, stop), as [B, width] float32 on the positions' device."""
        return self.rows.index_select(0, positions.to(self.rows.device) - self.start).float().to(positions.device)

    @torch.no_grad()
    def settle(self, skipped: torch.Tensor) -> None:
        """End a step: its updates stand, or its rows become what they were before it.

        Args:
            skipped: 0-dim bool on any device; True takes the updates back.
        """
        if not self._unsettled:
            return
        index, old = (torch.cat(parts) for parts in zip(*self._unsettled, strict=True))
        self._unsettled = []
        kept = torch.where(skipped.to(self.rows.device), old, self.rows.index_select(0, index))
        self.rows.index_copy_(0, index, kept)

    def _check_range(self, positions: torch.Tensor) -> None:
        outside = positions[(positions < self.start) | (positions >= self.stop)]
        if outside.numel():
            raise ValueError(f"position {int(outside[0])} is outside this bank's range [{self.start}, {self.stop})")

    def state_dict(self) -> dict[str, Any]:
        """Return {"start", "stop", "rows" [stop - start, width]}; the rows are the live tensor, not a copy."""
        return {"start": self.start, "stop": self.stop, "rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the rows that are this bank's from a bank with other positions; they are cast to its dtype.

        Where ranks were other, several banks together hold what this one needs: give it each of them.

        Raises:
            ValueError: another width, or no position in common.
        """
        theirs: torch.Tensor = state["rows"]
        start, stop = max(self.start, state["start"]), min(self.stop, state["stop"])
        nothing = start > stop or (start == stop and self.rows.numel() > 0 and theirs.numel() > 0)
        if nothing or theirs.shape != (state["stop"] - state["start"], self.rows.shape[1]):
            raise ValueError(
                f"bank of positions [{state['start']}, {state['stop']}) with rows {tuple(theirs.shape)} does not fit "
                f"positions [{self.start}, {self.stop}) with rows {tuple(self.rows.shape)}"
            )
        self.rows[start - self.start : stop - self.start].copy_(theirs[start - state["start"] : stop - state["start"]])
