"""A run as it lies on disk: its configuration and the network of its newest checkpoint."""

import sys
from pathlib import Path

from safetensors.torch import load_file

from pipeline import configfile
from pipeline.model import backbone
from pipeline.train.bad import BadImages
from pipeline.train.checkpoint import MODEL, newest, read_index
from pipeline.train.dist import World
from pipeline.train.evaluate import evaluate
from pipeline.train.network import Network
from shards.errors import InputError
from shards.manifest import Manifest


class StoredRun:
    """Opens a run's folder; `config` and `classes` are those it was trained with.

    Raises:
        InputError: no run, no checkpoint, or only damaged ones.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.toml").exists():
            raise InputError(f"{folder} is no run: a run's folder holds config.toml and checkpoints/")
        self.config = configfile.load(folder / "config.toml")
        checkpoint = newest(folder / "checkpoints")
        if checkpoint is None:
            raise InputError(f"{folder} has no checkpoint yet: train it first")
        self._checkpoint = checkpoint
        self.classes: tuple[str, ...] = tuple(read_index(checkpoint)["classes"])

    def evaluate(self, manifest: Manifest, world: World) -> dict[str, float]:
        """Accuracy on a dataset of the same classes; the ranks share the images. See `evaluate` for the figures.

        Raises:
            InputError: too many images that do not decode.
        """
        model, engine = self.config.model, self.config.engine
        module = backbone.build(model.name, len(self.classes), heads=self.config.heads, stem=model.stem)
        module.load_state_dict(load_file(self._checkpoint / MODEL))
        module.to(world.device).eval()
        network = Network(module, world.device, engine.precision, engine.channels_last)
        bad = BadImages(manifest, self.config.data.max_bad_fraction)
        figures = evaluate(network, manifest, self.config, world, bad)
        for found in bad.agree():
            if world.rank == 0:
                print(f"warning: {found['key']} does not decode: {found['reason']}", file=sys.stderr)
        return figures
