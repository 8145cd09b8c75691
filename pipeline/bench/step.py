"""Images/s of a training step of a recipe on this machine, and how much of it is waiting for data."""

import tempfile
from dataclasses import dataclass

from pipeline.bench.spread import spread
from pipeline.config import Config
from pipeline.record.metrics import Window
from pipeline.train import dist
from pipeline.train.inputs import Inputs
from pipeline.train.loop import Training
from shards.errors import InputError

_WARM_UP = 2  # steps: the first ones start workers and choose algorithms


@dataclass(frozen=True)
class StepFigures:
    """One of each repeat, over all ranks; seconds are of one step."""

    images_per_step: int
    steps: int  # of a repeat
    world: int
    device: str
    images_per_s: list[float]
    seconds: list[float]
    data_wait: list[float]  # of these, waiting for data
    compute: list[float]  # of these, everything else
    memory_gb: float  # peak of any rank


def measure(config: Config, *, steps: int, repeats: int) -> StepFigures:
    """Train as configured, but for a few steps, without evaluation, and without leaving anything behind.

    Raises:
        InputError: what a training run would refuse.
    """
    config = config.model_copy(
        update={
            "track": config.track.model_copy(update={"wandb": "disabled", "reference": None}),
            "eval": config.eval.model_copy(update={"sets": {}, "select_by": None}),
        }
    )
    inputs = Inputs.open(config, dist.world_size())
    taken, there = _WARM_UP + steps * repeats, config.optim.epochs * inputs.plan.steps_per_epoch
    if taken > there:
        raise InputError(
            f"{_WARM_UP} + {repeats} x {steps} steps are more than the {there} of the run: lower --steps or"
            " --repeats, or raise optim.epochs"
        )
    world = dist.start(config.dist.timeout)
    with tempfile.TemporaryDirectory(prefix="alasca-bench-") as own:
        folder = dist.gather(own)[0]
        run = config.run.model_copy(update={"dir": folder, "resume": "none"})
        training = Training(config.model_copy(update={"run": run}), inputs, world)
        try:
            windows = _windows(training, steps, repeats)
        finally:
            training.close()
        dist.barrier()  # rank 0's folder goes with its block
    device = world.device.type
    dist.stop()
    seconds = [window["seconds"] / steps for window in windows]
    waits = [window["data_wait"] * each for window, each in zip(windows, seconds, strict=True)]
    return StepFigures(
        images_per_step=inputs.plan.global_batch,
        steps=steps,
        world=world.size,
        device=device,
        images_per_s=[window["images_per_s"] for window in windows],
        seconds=seconds,
        data_wait=waits,
        compute=[each - wait for each, wait in zip(seconds, waits, strict=True)],
        memory_gb=windows[-1]["memory_gb"],
    )


def _windows(training: Training, steps: int, repeats: int) -> list[dict[str, float]]:
    training.engine.train()
    at = 0
    found = []
    for taken in [_WARM_UP, *[steps] * repeats]:
        window = Window()
        for step in range(at, at + taken):
            training.step(step, window)
        at += taken
        found.append(window.close())
    return found[1:]


def lines(figures: StepFigures) -> list[str]:
    """The same for a person."""
    share = [wait / each for wait, each in zip(figures.data_wait, figures.seconds, strict=True)]
    return [
        f"{figures.images_per_step:,} images a step, {figures.world} process{'es' * (figures.world > 1)} on"
        f" {figures.device}; median [lowest-highest] of {len(figures.seconds)} repeats of {figures.steps} steps",
        f"images/s      {spread(figures.images_per_s)}",
        f"a step        {spread(figures.seconds)} s",
        f"  data wait   {spread(figures.data_wait)} s, {spread([100 * s for s in share])} %",
        f"  compute     {spread(figures.compute)} s",
        f"peak memory   {figures.memory_gb:.2f} GB",
    ]
