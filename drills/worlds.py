"""A run that is killed and goes on in another number of processes: two, one, four, two."""

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from drills import record
from drills.job import kill
from drills.row import Row
from drills.scene import Scene
from pipeline.model import backbone
from pipeline.record.track import read_metrics
from pipeline.train import packed
from pipeline.train.checkpoint import MODEL, complete, own_name, read_index

_NAME = "worlds"
_LAST = 60  # step
_PARTS = (("torchrun", 2, 14), ("python", 1, 29), ("torchrun", 4, 45), ("deepspeed", 2, _LAST))  # and until which step
_CLOSE = 0.02  # of how far the weights moved: a ReLU whose input is within rounding of zero flips


def drill(scene: Scene) -> Iterator[Row]:
    """All ranks are killed on the way; the order of samples is the same, all else within rounding."""
    straight = scene.straight("short", 2)
    run = scene.run(_NAME)
    at = 0
    for launcher, world, until in _PARTS:
        began, since = time.monotonic(), time.time()
        with scene.start(launcher, "short", _NAME, world=world) as job:
            if until < _LAST:
                job.wait_for(lambda: record.steps(run, since)[-1:] >= [until], f"step {until}")  # noqa: B023
                kill([psutil.Process(job.process.pid), *job.ranks()])
            status = job.status(240)
            orphans = job.left(20)
        began_at = record.steps(run, since)[0] - 1
        done, saved = record.steps(run)[-1], record.saved(run)
        problems = [] if began_at == at else [f"began at step {began_at}, though step {at} was saved"]
        at = saved
        last = until == _LAST
        same = "see the last of these"
        if last:
            found, same = _compared(run, straight)
            problems += found + ([f"exit status {status}"] if status else [])
        yield Row(
            "other processes",
            f"{launcher}, {world} {'ranks' if world > 1 else 'rank'}",
            f"from step {began_at}, " + ("to the end" if last else f"all killed after step {done}"),
            status=str(status),
            lost=f"{done - saved} steps, back to the checkpoint of step {saved}" if not last else "0 steps",
            same=same,
            orphans=orphans,
            partial=scene.left_by(_NAME) if last else (),
            seconds=time.monotonic() - began,
            problems=problems,
        )


def _compared(run: Path, straight: Path) -> tuple[list[str], str]:
    """What is more than rounding, and how large the rounding is."""
    ends = [complete(folder / "checkpoints")[-1] for folder in (run, straight)]
    if ends[0].name != ends[1].name:
        return [f"the last checkpoint is {ends[0].name}, not {ends[1].name}"], "no"
    lines = [[r for r in read_metrics(folder) if r["kind"] == "train"] for folder in (run, straight)]
    exact = ("step", "samples", "images", "valid", "lr")
    problems = [f"metrics.jsonl: {n} differs" for n in exact if [r[n] for r in lines[0]] != [r[n] for r in lines[1]]]
    losses = max(abs(a["loss"] - b["loss"]) for a, b in zip(*lines, strict=True))
    weights, banks = [_weights(load_file(end / MODEL)) for end in ends], [_bank(end) for end in ends]
    torch.manual_seed(0)
    moved = weights[1] - _weights(
        backbone.build("resnet20", len(read_index(ends[1])["classes"]), heads="light").state_dict()
    )
    apart = float((weights[0] - weights[1]).norm() / moved.norm())
    bank = float((banks[0] - banks[1]).abs().max())
    if losses > 1e-3 or apart > _CLOSE or bank > 5e-3:
        problems.append(f"more than rounding: losses {losses:.1e}, weights {apart:.1e} of their way, bank {bank:.1e}")
    return problems, f"samples exactly; losses within {losses:.0e}, weights within {apart:.0e} of their way"


def _weights(model: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([model[name].flatten() for name in sorted(model) if model[name].dim() == 4])


def _bank(checkpoint: Path) -> torch.Tensor:
    ranks = range(len(read_index(checkpoint)["homes"]))
    return torch.cat([packed.read(checkpoint / own_name(rank), copy=True)["alasca"]["rows"] for rank in ranks])
