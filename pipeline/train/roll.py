"""The processes of a run as one of them sees them: who was heard last when, doing what."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

_BOOT = Path("/proc/sys/kernel/random/boot_id")  # names this machine since its start


@dataclass(frozen=True)
class Beat:
    """What a process says of itself every few seconds."""

    count: int  # a change of it is the sign of life; no clock travels
    host: str
    pid: int
    space: str  # `pid_space()` of the process
    phase: str
    step: int
    seconds: float  # in this phase
    left: bool = False  # finished, and says goodbye

    def encode(self) -> str:
        """As text for the store."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: bytes) -> Self:
        """From the store's bytes."""
        return cls(**json.loads(text))

    def __str__(self) -> str:
        return f"step {self.step}: {self.phase}, for {self.seconds:.0f} s"


def pid_space() -> str:
    """Where this process's id is known: two processes with the same answer see each other's ids."""
    try:
        return f"{_BOOT.read_text(encoding='ascii').strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


class Roll:
    """Last beats by rank, and when by the reader's own clock each last changed."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.beats: dict[int, Beat] = {}
        self._changed: dict[int, float] = {}
        self._missing: set[int] = set()

    def hear(self, rank: int, beat: Beat, now: float) -> None:
        """Note what was read of a rank at `now`, seconds of the reader's clock."""
        if rank not in self.beats or self.beats[rank].count != beat.count:
            self._changed[rank] = now
        self.beats[rank] = beat

    def staying(self) -> set[int]:
        """Ranks that have not said goodbye; some may not have been heard at all yet."""
        return {rank for rank in range(self.size) if rank not in self.beats or not self.beats[rank].left}

    def lost(self, now: float, limit: float, space: str) -> dict[int, str]:
        """Ranks that are gone, with what to say of each: silent for `limit` seconds, or ended on this very machine.

        Where one is found silent, those that are nearly so went with it: a node's processes fall silent together. A
        rank never heard is still starting; how long that may take is not known here.

        Args:
            now: seconds of the reader's clock, at which the beats were just read.
            limit: seconds.
            space: `pid_space()` of the reader.
        """
        heard = self.staying() & self.beats.keys()
        silent = {rank for rank in heard if now - self._changed[rank] > limit}
        if silent:
            silent = {rank for rank in heard if now - self._changed[rank] > limit * 2 / 3}
        missing = {rank for rank in heard if space and self.beats[rank].space == space and _ended(self.beats[rank].pid)}
        # Twice in a row: it may have said goodbye after its beat was read and before its process was looked for.
        ended, self._missing = missing & self._missing, missing
        words = {}
        for rank in sorted(silent | ended):
            beat = self.beats[rank]
            how = (
                f"(process {beat.pid}) ended without a word: killed, or crashed"
                if rank in ended
                else f"gave no sign of life for {limit:g} s: killed, suspended, or its machine is gone"
            )
            words[rank] = f"on {beat.host} {how}; last seen in {beat}"
        return words

    def last_seen(self, rank: int) -> str:
        """Where a rank was and what it did last, in words."""
        return (
            f"on {self.beats[rank].host} was last seen in {self.beats[rank]}" if rank in self.beats else "never spoke"
        )

    def table(self) -> str:
        """What every rank was doing, a line each."""
        rows: list[Iterable[str]] = [("rank", "host", "step", "doing", "for")]
        for rank in range(self.size):
            beat = self.beats.get(rank)
            if beat is None:
                rows.append((str(rank), "?", "", "not heard yet", ""))
            else:
                doing = "finished" if beat.left else beat.phase
                rows.append((str(rank), beat.host, str(beat.step), doing, f"{beat.seconds:.0f} s"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


def _ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
