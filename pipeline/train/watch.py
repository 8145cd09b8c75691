"""Each process of a run tells the others that it lives and what it does, and ends with them when one cannot go on."""

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Self

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from pipeline.train.dist import World
from pipeline.train.roll import Beat, Roll, pid_space
from pipeline.train.verdict import Verdict, is_an_echo

_BEATS = 6  # signs of life within the silence that counts as death
_LOOKS = 5  # looks at the own process per beat
_HURRY = 0.1  # seconds between looks at the store, where others are waited for
_SECONDS_TO_SPEAK = 5.0
_NAME, _VERDICT, _SEEN = "watch", "verdict", "seen"


class Watch:
    """A context manager around all that the processes of a run do together; in the main thread.

    Where one process raises, ends, falls silent or does not move, all of them learn it, the first on each node prints
    it, and all leave with status 1 (2 for a user's mistake). Two threads do the work. One talks to the store, and may
    be stuck in that for ever when the store's host is gone; the other never waits for anything but time. Time is this
    process's own, counted while it runs: after a pause (a debugger, a suspended machine) nobody is blamed for it.

    A process alone has nobody to tell; its own hang still ends it.

    Args:
        world: this process.
        timeout_s: seconds without progress of the main thread that count as a hang.
        heartbeat_s: seconds without a sign of life after which another process counts as gone.
        store: a connection of its own to what the processes share; none for a process alone.
        end: leaves the process with a status.
    """

    def __init__(
        self,
        world: World,
        timeout_s: float,
        heartbeat_s: float,
        store: Store | None = None,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self._world, self._timeout, self._silence, self._end = world, timeout_s, heartbeat_s, end
        self._every = heartbeat_s / _BEATS
        self._store = None if store is None else PrefixStore(_NAME, store)
        self._host, self._space = socket.gethostname(), pid_space()
        self._doing = ("start", 0)  # a new pair is progress, though it says the same
        self._roll, self._unheard = Roll(world.size), set(range(world.size))
        self._awake = self._contact = self._moved = 0.0
        self._count = 0
        self._verdict: Verdict | None = None
        self._proposal: Verdict | None = None
        self._deciding = threading.Lock()
        self._failing = self._left = False
        self._wake, self._closed = threading.Event(), threading.Event()
        self._said, self._settled = threading.Event(), threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True, name=f"{_NAME}: store")
        self._judge = threading.Thread(target=self._look, daemon=True, name=f"{_NAME}: clock")

    def phase(self, name: str, step: int | None = None) -> None:
        """Say what the main thread does from now on; counts as progress, costs next to nothing.

        Args:
            name: of the phase: start, data, compile, step, record, evaluate, save, finish.
            step: the optimizer step it belongs to, from 1; unless given, the same as before.
        """
        self._doing = (name, self._doing[1] if step is None else step)

    def __enter__(self) -> Self:
        if self._store is not None:
            self._store.set_timeout(timedelta(seconds=self._silence))
            self._listener.start()
        self._judge.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._store is not None:
            self._fail(error)
        self._closed.set()
        self._left = True
        self._wake.set()
        if self._listener.is_alive():
            self._listener.join(self._silence)
        if self._judge.is_alive():
            self._judge.join()

    def _fail(self, error: BaseException) -> None:
        """Tell the others before leaving."""
        if is_an_echo(error):
            # Of what befell another, which will be known once its silence has lasted; then `_judge` ends this process.
            self._judge.join(self._silence + 2 * self._every)
        beat = self._beat()
        verdict = Verdict.failure(error, self._world, self._host, f"step {beat.step}: {beat.phase}")
        with self._deciding:
            self._failing = self._verdict is None
            self._proposal = verdict if self._failing else None
        if not self._failing:
            self._judge.join()
            return
        if verdict.status == 1:
            self._say(verdict.text)
        self._said.set()
        self._wake.set()
        self._settled.wait(3 * self._every)
        if verdict.status == 1:
            self._end(1)

    def _listen(self) -> None:
        """Talk to the store, until there is nothing more to say or nobody to say it to."""
        while not self._exchanged():
            self._wake.wait(_HURRY if self._left else self._every)
            self._wake.clear()

    def _exchanged(self) -> bool:
        """Give a sign of life and read those of the others; True after the last time."""
        leaves = self._left  # read once: only what was also said counts
        try:
            self._swap(leaves)
        except dist.DistNetworkError:
            return True  # the connection is broken, and such a store never makes another
        except RuntimeError:
            return False  # no answer in time: `_look` counts for how long
        if self._verdict is not None:
            with suppress(RuntimeError):
                self._settle(self._verdict)
            self._settled.set()
            return True
        # The store may live in rank 0, which therefore goes last.
        return leaves and (self._world.rank != 0 or self._roll.staying() <= {0})

    def _swap(self, leaves: bool) -> None:
        assert self._store is not None
        rank, now = self._world.rank, self._awake
        self._count += 1
        self._store.set(str(rank), self._beat(leaves).encode())
        self._unheard = {other for other in self._unheard if not self._store.check([str(other)])}
        heard = [other for other in range(self._world.size) if other not in self._unheard]
        for other, text in zip(heard, self._store.multi_get([str(other) for other in heard]), strict=True):
            self._roll.hear(other, Beat.decode(text), now)
        if self._proposal is None and not leaves:
            lost = self._roll.lost(now, self._silence, self._space)
            lost.pop(rank, None)
            if lost:
                self._propose(Verdict.loss(lost, rank))
        if self._proposal is not None and not leaves:
            self._verdict = Verdict.decode(self._store.compare_set(_VERDICT, "", self._proposal.encode()))
        elif not leaves and self._store.check([_VERDICT]):
            self._verdict = Verdict.decode(self._store.get(_VERDICT))
        self._contact = now

    def _settle(self, verdict: Verdict) -> None:
        """Wait, not for long, until all who can have learnt the verdict: the store may end with this process."""
        assert self._store is not None
        expected = len(self._roll.staying() - set(verdict.gone))
        # Said first: when all have settled the first of them leaves, and its launcher ends the rest.
        self._said.wait(_SECONDS_TO_SPEAK + self._every)
        self._store.add(_SEEN, 1)
        limit = time.monotonic() + 2 * self._every
        while self._store.add(_SEEN, 0) < expected and time.monotonic() < limit:
            time.sleep(_HURRY)

    def _look(self) -> None:
        """Count time, see whether the main thread moves and the store answers, and carry out the verdict."""
        doing, pause, last = self._doing, self._every / _LOOKS, time.monotonic()
        while not self._closed.wait(pause):
            now = time.monotonic()
            self._awake += min(now - last, 2 * pause)
            last = now
            if self._doing is not doing:
                doing, self._moved = self._doing, self._awake
            elif self._awake - self._moved > self._timeout:
                self._roll.hear(self._world.rank, self._beat(), self._awake)
                self._propose(Verdict.hang(self._world.rank, self._timeout, self._roll.table()))
            if self._store is not None and self._awake - self._contact > self._silence:
                self._settled.set()
                silent = Verdict.no_store(self._world.rank, self._silence, self._roll.last_seen(0))
                with self._deciding:
                    self._verdict = self._verdict or self._proposal or silent
            with self._deciding:
                verdict = None if self._failing else self._verdict
            if verdict is not None:
                self._carry_out(verdict)
                return

    def _carry_out(self, verdict: Verdict) -> None:
        node = self._world.rank - self._world.local_rank
        said = verdict.text + "\n" if self._world.local_rank == 0 and verdict.spoken_on != node else ""
        if verdict.stacks:
            said += f"alasca: rank {self._world.rank} on {self._host}, what its threads were doing:\n{_stacks()}"
        if said:
            self._say(said.rstrip())
        self._said.set()
        if self._store is not None:
            self._settled.wait(3 * self._every)
        if verdict.rank != self._world.rank:
            time.sleep(self._every / _LOOKS)  # so that the launcher sees first the process that failed
        self._end(verdict.status)

    def _propose(self, verdict: Verdict) -> None:
        with self._deciding:
            if self._store is None:
                self._verdict = verdict
            else:
                self._proposal = self._proposal or verdict
        self._wake.set()

    def _beat(self, leaves: bool = False) -> Beat:
        phase, step = self._doing
        seconds = self._awake - self._moved
        return Beat(self._count, self._host, os.getpid(), self._space, phase, step, seconds, leaves)

    def _say(self, text: str) -> None:
        """Print, but not for ever: the main thread may hang in just that, and hold the lock of the stream."""

        def speak() -> None:
            sys.stdout.flush()
            print(text, file=sys.stderr, flush=True)

        speaker = threading.Thread(target=speak, daemon=True)
        speaker.start()
        speaker.join(_SECONDS_TO_SPEAK)


def _stacks() -> str:
    """Every thread's calls, the main thread's last."""
    frames, parts = sys._current_frames(), []
    for thread in reversed(threading.enumerate()):
        if thread.ident in frames and not thread.name.startswith(_NAME):
            parts.append(f"thread {thread.name}:\n{''.join(traceback.format_stack(frames[thread.ident]))}")
    return "".join(parts)
