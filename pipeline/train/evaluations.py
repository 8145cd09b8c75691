"""When a run evaluates, and on which of its sets it still has to."""

from pipeline.config import Config
from pipeline.record.summary import evaluated
from pipeline.train import dist
from pipeline.train.dist import World
from shards.manifest import Manifest


class Evaluations:
    """Of one attempt.

    Args:
        config: the run; `eval.every` epochs, and at the end.
        sets: by name.
        steps_per_epoch: of the plan.
        start: steps that earlier attempts finished.
        last: where this attempt ends.
        world: this process.
    """

    def __init__(
        self, config: Config, sets: dict[str, Manifest], steps_per_epoch: int, start: int, last: int, world: World
    ) -> None:
        self._config, self._sets, self._steps_per_epoch = config, sets, steps_per_epoch
        self._start, self._last, self._world = start, last, world

    def due(self, done: int) -> bool:
        """Whether one is due after so many steps."""
        epochs, rest = divmod(done, self._steps_per_epoch)
        return done > 0 and (done == self._last or (rest == 0 and epochs % self._config.eval.every == 0))

    def missing(self, done: int) -> tuple[dict[str, Manifest], dict[str, float]]:
        """Sets without a record of this step, and the accuracies of those with one; called by all ranks together.

        Only where this attempt starts may there be any with one: a stop cut the evaluation off there, or came after it.
        """
        if done > self._start:
            return self._sets, {}
        known = dist.gather(evaluated(self._config.folder, done) if self._world.rank == 0 else None)[0]
        return {name: manifest for name, manifest in self._sets.items() if name not in known}, known
