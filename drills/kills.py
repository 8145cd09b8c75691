"""SIGKILL at random, to one rank or to the launcher and all ranks, half of them within a checkpoint's write."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from drills import record
from drills.job import Job, gone, kill
from drills.row import Row
from drills.scene import Scene

_KILLS = 20
_RESTARTS = ("--max-restarts", str(_KILLS + 5))  # torchrun starts all ranks again where one was killed
_NAME = "killed"
_GONE_S = 75.0  # a rank that is killed ends the job within a minute


def drill(scene: Scene) -> Iterator[Row]:
    """Twenty kills of one run, which is started again each time, by torchrun or by hand; then it is compared."""
    straight = scene.straight("wide", 2)
    rng = random.Random(0)
    moments = [(who, where) for who in ("one", "all") for where in ("write", "anywhere")] * (_KILLS // 4)
    rng.shuffle(moments)
    chain = _Chain(scene, rng)
    try:
        for who, where in moments:
            yield chain.kill(who, where)
        began = time.monotonic()
        status = chain.job.status(240)
        differences = record.differences(scene.run(_NAME), straight)
        yield Row(
            "SIGKILL",
            "torchrun, 2 ranks",
            f"the run that was killed {_KILLS} times, at its end",
            status=str(status),
            same="no" if differences else "yes, bit for bit",
            orphans=chain.job.left(15),
            partial=scene.left_by(_NAME),
            seconds=time.monotonic() - began,
            problems=differences + ([f"exit status {status}"] if status else []),
        )
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

    def kill(self, who: str, where: str) -> Row:
        """Wait for the moment, kill, and see where the next attempt goes on."""
        began = time.monotonic()
        when = self._within_a_write() if where == "write" else self._anywhere()
        ranks = self.job.ranks()
        before = record.steps(self.run, self.since)
        newest = record.saved(self.run)
        family = [process for process in self.job.family() if process.pid != self.job.process.pid]
        if who == "one":
            rank = self.rng.randrange(2)
            kill([ranks[rank]])
            whom = f"rank {rank}"
        else:
            kill([psutil.Process(self.job.process.pid), *ranks])
            whom = "launcher and ranks"
        self.stale |= record.writing(self.run)
        struck = time.monotonic()
        orphans = gone(lambda: [process for process in family if _lives(process)], _GONE_S)
        ended = time.monotonic() - struck
        status = "restarted by torchrun"
        if who == "all":
            status = str(self.job.status(5))
            self.job.end()
        self.since = time.time()
        if who == "all":
            self.job = self._start()
        self.job.wait_for(lambda: record.steps(self.run, self.since), "step after the kill")
        at = record.steps(self.run, self.since)[0] - 1
        lost = max(0, before[-1] - at) if before else 0
        swept = self.stale - record.writing(self.run)
        problems = [] if at >= newest else [f"went on from step {at}, though step {newest} was saved"]
        return Row(
            "SIGKILL",
            "torchrun, 2 ranks",
            f"{whom}, {when}; all gone after {ended:.0f} s",
            status=status,
            lost=f"{lost} steps, back to the checkpoint of step {at}" if at else f"{lost} steps, none was saved",
            same="see the last of these",
            orphans=orphans,
            partial=sorted(self.stale - swept),
            seconds=time.monotonic() - began,
            problems=problems,
        )

    def _start(self) -> Job:
        return self.scene.start("torchrun", "wide", _NAME, options=_RESTARTS)

    def _within_a_write(self) -> str:
        """Wait for the first or second write of this attempt, and for a part of it."""
        skip = self.rng.randrange(2)
        known = set(self.stale)
        while True:
            self.job.wait_for(lambda: record.writing(self.run) - known, "checkpoint being written")
            (name,) = record.writing(self.run) - known
            known.add(name)
            if skip:
                skip -= 1
                continue
            time.sleep(self.rng.uniform(0, 0.1))
            # Told by what is there at the kill itself, a moment later.
            if name in record.writing(self.run) and len(self.job.ranks()) == 2:
                return f"in the write of step {int(name[6:15])}"

    def _anywhere(self) -> str:
        steps = self.rng.randrange(-1, 2 * 4)
        if steps < 0:
            self.job.wait_for_ranks(2)
            time.sleep(self.rng.uniform(0, 6))
            self.job.wait_for_ranks(2)
            return "while they start"
        self.job.wait_for(lambda: len(record.steps(self.run, self.since)) > steps, f"{steps} steps")
        time.sleep(self.rng.uniform(0, 0.15))
        return f"after step {record.steps(self.run, self.since)[-1]}"


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
