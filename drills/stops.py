"""SIGTERM to launcher, group or one rank, in training, an evaluation, the wait for the first batch, a save."""

import json
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from drills import record
from drills.held import Held
from drills.job import ROOT, Job, kill
from drills.row import Row
from drills.scene import STEPS_PER_EPOCH, Scene

_PHASES = ("train", "first batch", "save", "evaluation")  # the last leaves an evaluation to be made up for
_TARGETS = {
    "torchrun": ("launcher", "group", "one rank"),
    "deepspeed": ("launcher", "group", "one rank"),
    "python": ("launcher", "group"),  # it is the one rank itself
}
_LEAVES_S = 75.0
_WORDS = ("--data.workers", "2")


def drill(scene: Scene) -> Iterator[Row]:
    """A run by each launcher is stopped in all these ways, one after the other; each attempt goes on with the run."""
    for launcher, targets in _TARGETS.items():
        world = 1 if launcher == "python" else 2
        straight = scene.straight("long", world)
        name = f"stopped-{launcher}"
        rng = random.Random(launcher)
        for phase in _PHASES:
            for target in targets:
                yield _stop(scene, launcher, world, name, phase, target, rng)
        began = time.monotonic()
        status = scene.finish(launcher, "long", name, *_WORDS, world=world)
        yield Row(
            "SIGTERM",
            _shown(launcher, world),
            f"the run that was stopped {len(_PHASES) * len(targets)} times, at its end",
            **record.comparison(scene.run(name), straight, status, more_saves=True),
            partial=scene.left_by(name),
            seconds=time.monotonic() - began,
        )


def _stop(scene: Scene, launcher: str, world: int, name: str, phase: str, target: str, rng: random.Random) -> Row:
    run, began, since = scene.run(name), time.monotonic(), time.time()
    with Held(scene.data("few")) as held:
        words = list(_WORDS)
        if phase == "first batch":
            words += ["--data.train", held.url, "--data.cache", str(scene.folder / "cache" / f"{time.time_ns()}")]
            words += ["--data.fetch_timeout", "30"]
        with scene.start(launcher, "long", name, *words, world=world) as job:
            moment = _wait(job, run, phase, world, since, held, rng)
            started = time.monotonic()
            _tell(job, target)
            written = record.writing(run)
            status = job.status(_LEAVES_S)
            orphans = job.left(_LEAVES_S if launcher == "deepspeed" else 15)
            took = time.monotonic() - started
            text = job.text()
    stopped = json.loads((run / "stopped").read_text()) if (run / "stopped").exists() else None
    done = max(record.steps(run), default=0)
    problems = []
    if stopped is None:
        problems.append(f"no runs/{name}/stopped: {text[-1500:]}")
    elif stopped["step"] != record.saved(run):
        problems.append(f"stopped at step {stopped['step']}, saved is {record.saved(run)}")
    if ours := re.search(rf'File "{re.escape(str(ROOT))}/(?!\.venv/)', text):  # torchrun's own traceback has none of it
        problems.append(f"a traceback: {text[ours.start() :][:1500]}")
    if (target == "one rank" or launcher == "python") and status:
        problems.append(f"exit status {status}")
    if phase == "evaluation" and stopped and stopped["step"] in record.evaluated(run):
        moment += " (it came to its end)"
    if phase == "save" and not written:
        moment += " (it had just ended)"
    lost = done - record.saved(run)
    if lost:
        problems.append(f"step {done} is in the record, {record.saved(run)} is saved")
    return Row(
        "SIGTERM",
        _shown(launcher, world),
        f"{target}, {moment}; all gone after {took:.0f} s",
        status=str(status),
        lost=f"{lost} steps",
        same="see the last of these",
        orphans=orphans,
        partial=scene.left_by(name),
        seconds=time.monotonic() - began,
        problems=problems,
    )


def _wait(job: Job, run: Path, phase: str, world: int, since: float, held: Held, rng: random.Random) -> str:
    """Wait for the moment; returns it in words."""
    job.wait_for_ranks(world)
    if phase == "first batch":
        job.wait_for(lambda: held.waiting, "data worker that waits for a shard")
        return "waiting for the first batch"
    if phase == "train":
        steps = rng.randrange(1, 4)
        job.wait_for(lambda: len(record.steps(run, since)) >= steps, "step")
        time.sleep(rng.uniform(0, 0.1))
        return f"in training, after step {record.steps(run)[-1]}"
    if phase == "save":
        job.wait_for(lambda: record.writing(run), "checkpoint being written")
        return "in a save"

    def evaluates() -> bool:
        done = record.steps(run)
        if (run / "stopped").exists():  # the mark of the attempt before goes when this one's loop begins
            return False
        return bool(done) and done[-1] % STEPS_PER_EPOCH == 0 and done[-1] not in record.evaluated(run)

    job.wait_for(evaluates, "evaluation")
    return f"in the evaluation of step {record.steps(run)[-1]}"


def _tell(job: Job, target: str) -> None:
    if target == "launcher":
        job.process.send_signal(signal.SIGTERM)
    elif target == "group":
        kill(job.family(), signal.SIGTERM)
    else:
        kill(job.ranks()[-1:], signal.SIGTERM)


def _shown(launcher: str, world: int) -> str:
    return f"{launcher}, {world} ranks" if world > 1 else f"{launcher}, 1 rank"
