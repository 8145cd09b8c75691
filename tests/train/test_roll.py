"""Who was heard when, and what is said of those who were not."""

import os

from pipeline.train.roll import Beat, Roll, pid_space
from pipeline.train.verdict import Verdict


def test_ranks_fall_silent_together_and_those_that_left_or_still_start_do_not_count() -> None:
    def at(step: int, left: bool = False) -> Beat:
        return Beat(step, "node-b", os.getpid(), pid_space(), "data", step, 0.0, left)

    roll = Roll(5)
    for rank, now in ((0, 0.0), (1, 1.0), (2, 3.0), (3, 0.0)):
        roll.hear(rank, at(1, left=rank == 3), now)
    assert roll.lost(10.0, 10.0, pid_space()) == {}
    assert set(roll.lost(10.5, 10.0, pid_space())) == {0, 1, 2}
    roll.hear(2, at(2), 10.5)
    assert set(roll.lost(10.5, 10.0, pid_space())) == {0, 1}
    assert roll.staying() == {0, 1, 2, 4}
    assert "not heard yet" in roll.table().splitlines()[5]


def test_a_verdict_travels_whole() -> None:
    verdict = Verdict.loss({3: "on node-b is gone", 4: "too"}, noticed_by=1)
    assert Verdict.decode(verdict.encode().encode()) == verdict
