"""The benchmark runs and counts right. Speed itself is never asserted."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import tables
from benchmarks.methods import Run, arguments
from benchmarks.variants import METHODS, PLAIN, Setting, Variant, noise, prepare
from pipeline.train.dist import World

TINY = Setting("resnet20", "imagenet", size=16, classes=4, micro_batch=4, micro_batches=2, precision="float32")


def test_every_method_is_timed_in_turn(world: World) -> None:
    run = Run(TINY, world, warmup=1)
    variants = [Variant(name, channels_last=True) for name in (*METHODS, PLAIN)]
    for variant in variants:
        run.ready(variant)
    run.take(repeats=2, steps=1)
    assert not run.failed
    assert list(run.samples) == variants
    assert all(len(values) == 2 and min(values) > 0 for values in run.samples.values())


def test_the_plain_loop_trains_as_ours_does(world: World) -> None:
    """Or the peer would be timed at other work: only the weight decay of norms and biases differs, by 1e-5 here."""
    ours, plain = (
        prepare(Variant(name, channels_last=True), TINY, world, noise(TINY, world.device)) for name in ("ce", PLAIN)
    )
    for _ in range(3):
        torch.testing.assert_close(ours(), plain(), rtol=1e-3, atol=1e-3)


def test_ratios_are_taken_within_a_repeat() -> None:
    fast, slow = Variant("alasca-light", True), Variant("har", True)
    samples = {fast: [100.0, 10.0, 60.0], slow: [50.0, 4.0, 20.0]}
    assert tables.ratios(samples, fast, slow) == [2.0, 2.5, 3.0]
    table = tables.against_penalties(samples, {v.method: v for v in samples})
    assert "| alasca-light | 2.50 [2.00-3.00] | - |" in table


def test_the_best_way_is_that_with_the_highest_median() -> None:
    steady, lucky = Variant("har", False), Variant("har", True)
    samples = {lucky: [1.0, 1.0, 9.0], steady: [2.0, 2.0, 2.0]}
    assert tables.best_ways(samples) == {"har": steady}


def test_memory_sees_what_a_step_holds_at_its_peak() -> None:
    """Also when it is freed again before the end. In a process of its own, as always: others let go of memory, too."""
    code = (
        "import torch; from benchmarks import memory\n"
        "print(memory.cpu_peak(lambda: torch.ones(64 * 2**20, dtype=torch.uint8), steps=2))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=100)
    if done.stdout.strip() == "None":
        pytest.skip("this system does not tell")
    assert 60 * 2**20 < int(done.stdout) < 100 * 2**20, done.stderr


def test_a_count_of_zero_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        arguments(["--repeats", "0"])
    assert ended.value.code == 2
    assert "must be 1 or more" in capsys.readouterr().err
