"""Why a run ends before its time, as every process of it is told."""

import json
import traceback
from dataclasses import asdict, dataclass
from typing import Self

import torch.distributed as dist

from pipeline.train.dist import World
from shards.errors import InputError, OwnError, one_line

_LINES = 60  # of a traceback, the last ones, travel to the other nodes
_NEXT = "The run ends; started again with --resume auto it goes on from its newest checkpoint."


@dataclass(frozen=True)
class Verdict:
    """The first one counts; whoever comes later learns it."""

    text: str  # printed once on each node
    rank: int  # of the process that failed, or that noticed
    status: int = 1  # of every process
    spoken_on: int = -1  # first rank of the node on which the failed process says it itself
    gone: tuple[int, ...] = ()  # ranks that will not learn it
    stacks: bool = False  # each process also prints what its threads were doing

    def encode(self) -> str:
        """As text for the store."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: bytes) -> Self:
        """From the store's bytes."""
        fields = json.loads(text)
        return cls(**{**fields, "gone": tuple(fields["gone"])})

    @classmethod
    def failure(cls, error: BaseException, world: World, host: str, doing: str) -> Self:
        """This process raised. Mistakes of the user, and Ctrl-C, travel as one line and are printed by the caller."""
        node, who = world.rank - world.local_rank, f"alasca: rank {world.rank} on {host}"
        if isinstance(error, InputError):
            speaks = world.local_rank == 0 or isinstance(error, OwnError)
            return cls(f"{who}: {one_line(error)}", world.rank, 2, node if speaks else -1)
        if isinstance(error, KeyboardInterrupt):
            return cls(f"{who} was interrupted", world.rank, 130, node)
        lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
        if len(lines) > _LINES:
            lines = ["...", *lines[-_LINES:]]
        return cls("\n".join([f"{who} failed in {doing}:", *lines, _NEXT]), world.rank, 1, node)

    @classmethod
    def loss(cls, lost: dict[int, str], noticed_by: int) -> Self:
        """Processes are gone; `lost` says of each where it was and what it did last."""
        lines = [f"alasca: rank {rank} {words}" for rank, words in lost.items()]
        return cls("\n".join([*lines, _NEXT]), noticed_by, gone=tuple(lost))

    @classmethod
    def hang(cls, rank: int, seconds: float, table: str) -> Self:
        """A process did nothing for `seconds`; the table says what each did."""
        first = f"alasca: rank {rank} did not move for {seconds:g} s (dist.timeout). What each process was doing:"
        return cls("\n".join([first, table, _NEXT]), rank, stacks=True)

    @classmethod
    def no_store(cls, rank: int, seconds: float, keeper: str) -> Self:
        """Nobody can be told any more, so each process finds this by itself."""
        first = f"alasca: the store that the processes share did not answer for {seconds:g} s; its host is gone."
        return cls(f"{first} Rank 0 {keeper}\n{_NEXT}", rank)


def is_an_echo(error: BaseException) -> bool:
    """Whether a collective raised it, which most often tells of another process: that one ended or hangs."""
    if isinstance(error, dist.DistError):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("torch.distributed")
