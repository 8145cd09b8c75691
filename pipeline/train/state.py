"""Everything of a run that a checkpoint holds."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from pipeline.config import Config
from pipeline.train.bad import BadImages
from pipeline.train.checkpoint import EMA, read_index
from pipeline.train.checkpoints import Checkpoints
from pipeline.train.compose import compose
from pipeline.train.dist import World
from pipeline.train.engine import Engine
from pipeline.train.identity import versions
from pipeline.train.inputs import Inputs
from pipeline.train.nonfinite import NonFiniteSteps


class State:
    """Network, EMA, optimizer and statistics; per-sample state; what was found bad. Changes with every step.

    Args:
        config: the run.
        inputs: what it is made from.
        world: this process.
    """

    def __init__(self, config: Config, inputs: Inputs, world: World) -> None:
        plan, self._world = inputs.plan, world
        self._classes = inputs.manifest.classes
        self._home = plan.home(world.rank, world.size)
        lanes = plan.lanes_of(world.rank, world.size)
        self.engine = Engine(inputs.module, config.optim, config.engine, world, config.data.micro_batch, len(lanes))
        self.objective = compose(config, inputs.manifest, inputs.selection, plan, world, self.engine)
        allowed = config.data.max_bad_fraction
        self.bad = {"train": BadImages(inputs.manifest, allowed, of=plan.num_active)}
        self.bad |= {f"eval.{name}": BadImages(manifest, allowed) for name, manifest in inputs.sets.items()}
        self.nonfinite = NonFiniteSteps(config, plan)

    def save(self, checkpoints: Checkpoints, done: int, about: dict[str, Any]) -> None:
        """Begin to write it after `done` steps; all ranks together. `about` joins the index."""
        self.engine.average_over_ranks()
        checkpoints.save(
            done,
            model=self.engine.module.state_dict(),
            ema=None if self.engine.ema is None else self.engine.ema.state_dict(),
            optimizer=self.engine.optimizer.state_dict(),
            own=self.objective.state_dict(),
            home=self._home,
            about={
                "classes": self._classes,
                "versions": versions(),
                "world": self._world.size,
                "bad": {name: bad.state_dict() for name, bad in self.bad.items()},
                "nonfinite": self.nonfinite.state_dict(),
                **about,
            },
        )

    def restore(self, checkpoints: Checkpoints, path: Path) -> None:
        """Take over what a checkpoint holds, whatever number of ranks wrote it."""
        model, optimizer, owns = checkpoints.load(path, self._world.device, self._home)
        self.engine.module.load_state_dict(model)
        self.engine.statistics.reload()
        self.engine.optimizer.load_state_dict(optimizer)
        for own in owns:
            self.objective.load_state_dict(own)
        index = read_index(path)
        if self.engine.ema is not None:
            self.engine.ema.load_state_dict(load_file(path / EMA), index["step"])
        for name, bad in self.bad.items():
            bad.load_state_dict(index["bad"].get(name, []))
        self.nonfinite.load_state_dict(index["nonfinite"])
