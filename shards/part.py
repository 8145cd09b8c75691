"""One part of a build that many jobs share."""

import re
from typing import NamedTuple, Self

from shards.errors import InputError


class Part(NamedTuple):
    """Part `number` of `of`, counted from 1: every `of`-th shard. Together the parts are the build."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "I/N"; raises InputError where it is none of 1/N .. N/N."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        part = cls(int(match[1]), int(match[2])) if match else None
        if part is None or not 1 <= part.number <= part.of:
            raise InputError(f"--part {text}: must be I/N with I from 1 to N, as in 3/16")
        return part

    def shards(self, count: int) -> range:
        """Return which of a build's `count` shards are this part's: by index, evenly spread."""
        return range(self.number - 1, count, self.of)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"
