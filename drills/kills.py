"""SIGKILL at random, to one rank or to the launcher and all ranks, half of them within a checkpoint's write."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from drills import record
from drills.job import Job, gone, kill, lives
from drills.row import Row
from drills.scene import SAVE_EVERY, Scene

_MOMENTS = ["write"] * 5 + ["anywhere"] * 3 + ["twice"]  # for one rank, and for all; the last are two kills
_MOST = 30  # one that came just after its write is made up for
_RESTARTS = ("--max-restarts", str(_MOST))  # torchrun starts all ranks again where one was killed
_NAME, _SHOWN = "killed", "torchrun, 2 ranks"
_GONE_S = 75.0  # a rank that is killed ends the job within a minute


def drill(scene: Scene) -> Iterator[Row]:
    """Twenty kills of one run, which is started again each time, by torchrun or by hand; then it is compared."""
    straight = scene.straight("wide", 2)
    rng = random.Random(0)
    moments = [(who, where) for who in ("one", "all") for where in _MOMENTS]
    rng.shuffle(moments)
    chain = _Chain(scene, rng)
    count = 0
    try:
        while moments and count < _MOST:
            row, missed = chain.kill(*moments[-1])
            count += 1 + (moments[-1][1] == "twice")
            if not missed:
                moments.pop()
            yield row
        began = time.monotonic()
        status = chain.job.status(240)
        row = Row(
            "SIGKILL",
            _SHOWN,
            f"the run that was killed {count} times, at its end",
            **record.comparison(scene.run(_NAME), straight, status),
            orphans=chain.job.left(15),
            partial=scene.left_by(_NAME),
            seconds=time.monotonic() - began,
        )
        row.problems += [f"{len(moments)} moments were never met"] if moments else []
        yield row
    finally:
        chain.job.end()


@dataclass
class _Chain:
    """The attempts at one run, one after the other."""

    scene: Scene
    rng: random.Random
    since: float = 0.0  # Unix time at which the attempt began
    stale: set[str] = field(default_factory=set)  # temporary folders of earlier attempts

    def __post_init__(self) -> None:
        self.run: Path = self.scene.run(_NAME)
        self.job: Job = self._start()

    def kill(self, who: str, where: str) -> tuple[Row, bool]:
        """Wait for the moment, kill, and see where the next attempt goes on; also whether the write was missed."""
        began, writes = time.monotonic(), where == "write"
        self.job.wait_for(lambda: record.steps(self.run, self.since), "step")
        when = None if writes else self._anywhere()
        victim = self.rng.randrange(2)
        victims = self._victims(who, victim)  # looked up before the moment: it takes longer than a write
        writing = self._within_a_write() if writes else ""
        kill(victims)
        inside = record.writing(self.run)
        struck, newest = time.monotonic(), record.saved(self.run)
        before = record.steps(self.run, self.since)
        if when is None:
            when = f"{'in' if writing in inside else 'just after'} the write of step {int(writing[6:15])}"
        self.stale |= inside
        orphans = self._gone()
        ended = time.monotonic() - struck
        status = self._again(who)
        if where == "twice":
            self.job.wait_for_ranks(2)
            seconds = self.rng.uniform(0, 4)
            time.sleep(seconds)
            kill(self._victims(who, victim))
            when += f", and again {seconds:.1f} s into the next start"
            orphans += self._gone()
            status = self._again(who)
        self.job.wait_for(lambda: record.steps(self.run, self.since), "step after the kill")
        at = record.steps(self.run, self.since)[0] - 1
        lost = max(0, before[-1] - at) if before else 0
        row = Row(
            "SIGKILL",
            _SHOWN,
            f"{'launcher and ranks' if who == 'all' else f'rank {victim}'}, {when}; all gone after {ended:.0f} s",
            status=status,
            lost=f"{lost} steps, back to the checkpoint of step {at}" if at else f"{lost} steps, none was saved",
            same="see the last of these",
            orphans=orphans,
            partial=sorted(self.stale & record.writing(self.run)),
            seconds=time.monotonic() - began,
            problems=[] if at >= newest else [f"went on from step {at}, though step {newest} was saved"],
        )
        return row, writes and writing not in inside

    def _start(self) -> Job:
        return self.scene.start("torchrun", "wide", _NAME, options=_RESTARTS)

    def _victims(self, who: str, rank: int) -> list[psutil.Process]:
        ranks = self.job.ranks()
        return [ranks[rank]] if who == "one" else [psutil.Process(self.job.process.pid), *ranks]

    def _gone(self) -> list[str]:
        """Wait until all that the killed attempt had is gone, but for the launcher; returns who is not."""
        family = [process for process in self.job.family() if process.pid != self.job.process.pid]
        return gone(lambda: filter(lives, family), _GONE_S)

    def _again(self, who: str) -> str:
        """Start the next attempt, unless torchrun does; returns the last one's status."""
        status = "torchrun starts again"
        if who == "all":
            status = str(self.job.status(5))
            self.job.end()
        self.since = time.time()
        if who == "all":
            self.job = self._start()
        return status

    def _within_a_write(self) -> str:
        """Wait for the first or second write of this attempt, and for a part of it; returns its folder's name."""
        skip, known = self.rng.randrange(2), set(self.stale)

        def begun() -> set[str]:
            # A checkpoint that is no longer kept bears such a name, too, while it is removed.
            found, saved = record.writing(self.run) - known, record.saved(self.run)
            return {name for name in found if int(name[6:15]) > saved}

        while True:
            self.job.wait_for(begun, "checkpoint being written")
            name = min(begun(), default="")
            known.add(name)
            if name and not skip:
                time.sleep(self.rng.uniform(0, 0.15))
                if name in record.writing(self.run):
                    return name
            skip = max(0, skip - 1)

    def _anywhere(self) -> str:
        steps = self.rng.randrange(2 * SAVE_EVERY)
        self.job.wait_for(lambda: len(record.steps(self.run, self.since)) > steps, "step")
        time.sleep(self.rng.uniform(0, 0.15))
        return f"after step {record.steps(self.run, self.since)[-1]}"
