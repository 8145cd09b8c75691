"""How long a save holds training up, and what writing costs it meanwhile: `python -m benchmarks.checkpoints`.

In turn, round after round: steps without a save; a plain save (copy, write and wait until it is on the disk); a save
beside training, of which only the copy is waited for, and steps while it is written.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.variants import LR, Setting, noise
from pipeline.bench.spread import spread
from pipeline.config import Engine as EngineConfig
from pipeline.config import Optim
from pipeline.method.objective import Objective
from pipeline.model.backbone import build
from pipeline.train import dist
from pipeline.train.checkpoints import Checkpoints
from pipeline.train.engine import Engine


class Saving:
    """A training step, and saves of its network with a bank of `rows` x `classes` floats."""

    def __init__(self, setting: Setting, world: dist.World, folder: Path, rows: int, classes: int) -> None:
        self.engine = Engine(
            build(setting.model, setting.classes, "none", stem=setting.stem, width=setting.width),
            Optim(epochs=1),
            EngineConfig.model_validate({"precision": setting.precision}),
            world,
            setting.micro_batch,
            1,
        )
        self.engine.train()
        self.bank = torch.rand(rows, classes, device=world.device)
        self.objective, self.batch = Objective(), noise(setting, world.device)[0]
        self.checkpoints, self.saved = Checkpoints(folder / "checkpoints", world, keep=1), 0
        self.checkpoints.meet()

    def step(self) -> float:
        """Train one step; seconds."""
        began, batch = time.perf_counter(), self.batch
        main, aux = self.engine.forward(batch.images)
        self.engine.backward(self.objective(main, aux, batch.labels, batch.positions, batch.valid, 0).total)
        self.engine.step(LR)
        if batch.images.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def begin(self) -> float:
        """Begin a save; seconds until training may go on."""
        began, self.saved = time.perf_counter(), self.saved + 1
        self.checkpoints.save(
            self.saved,
            model=self.engine.module.state_dict(),
            optimizer=self.engine.optimizer.state_dict(),
            own={"alasca": {"start": 0, "stop": len(self.bank), "rows": self.bank}},
            home=(0, len(self.bank)),
            about={"selected": None},
        )
        return time.perf_counter() - began

    def end(self) -> float:
        """Wait until it is complete; seconds."""
        began = time.perf_counter()
        self.checkpoints.finish()
        return time.perf_counter() - began


def measure(saving: Saving, repeats: int, steps: int) -> dict[str, list[float]]:
    """Seconds, [repeats] each: a step alone, a plain save, what a save beside training holds up, a step during one."""
    found: dict[str, list[float]] = {name: [] for name in ("step", "plain", "held_up", "step_while_writing")}
    for repeat in range(-1, repeats):  # the first only warms up: the host's buffers are made then
        alone = [saving.step() for _ in range(steps)]
        plain = saving.begin() + saving.end()
        held_up, beside = saving.begin(), []
        while saving.checkpoints.writing:
            beside.append(saving.step())
        saving.end()
        if repeat >= 0:
            values = (statistics.mean(alone), plain, held_up, statistics.mean(beside))
            for name, value in zip(found, values, strict=True):
                found[name].append(value)
    return found


def ratio(over: Sequence[float], under: Sequence[float]) -> str:
    """Median [lowest-highest] of the ratios within a repeat."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def main() -> None:
    """Measure and print a table; with --json also write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoints", description=__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--bank-gb", type=float, default=1.0, help="10^9 bytes of per-sample state (default: 1)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="steps without a save in a repeat")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    setting = Setting(options.model, "imagenet", options.size, 1000, options.micro_batch, 1, "auto")
    about = machine.facts()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = max(1, round(options.bank_gb * 1e9 / 4000))
        saving = Saving(setting, dist.start(600), Path(folder), rows, 1000)
        found = measure(saving, options.repeats, options.steps)
    print(
        f"{machine.in_words(about)}\n{setting.model}, {setting.size} pixels, {setting.micro_batch} images a step; "
        f"bank of {options.bank_gb:g} GB; median [lowest-highest] of {options.repeats}\n\n"
        "| what | seconds | ratio |\n|---|---|---|\n"
        f"| plain save | {spread(found['plain'])} | 1 |\n"
        f"| training held up by a save beside it | {spread(found['held_up'])} |"
        f" {ratio(found['held_up'], found['plain'])} of the plain save |\n"
        f"| step | {spread(found['step'])} | 1 |\n"
        f"| step while a checkpoint is written | {spread(found['step_while_writing'])} |"
        f" {ratio(found['step_while_writing'], found['step'])} of the step |"
    )
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": about, **found}, indent=1) + "\n", encoding="utf-8")
    dist.stop()


if __name__ == "__main__":
    main()
