"""A run as it lies on disk: its configuration and the network of its newest checkpoint."""

from pathlib import Path

from safetensors.torch import load_file

from pipeline import config as configuration
from pipeline.model import backbone
from pipeline.train import dist
from pipeline.train.checkpoint import MODEL, newest, read_index
from pipeline.train.evaluate import evaluate, open_set
from pipeline.train.network import Network
from shards.errors import InputError


def evaluate_run(folder: Path, data: str) -> dict[str, float]:
    """Accuracy of a run's newest checkpoint on a dataset; under a launcher the ranks share the images.

    Raises:
        InputError: no run, no checkpoint, or a dataset that does not fit it.
    """
    if not (folder / "config.toml").exists():
        raise InputError(f"{folder} is no run: a run's folder holds config.toml and checkpoints/")
    config = configuration.load(folder / "config.toml")
    checkpoint = newest(folder / "checkpoints")
    if checkpoint is None:
        raise InputError(f"{folder} has no checkpoint yet: train it first")
    manifest = open_set(data, tuple(read_index(checkpoint)["classes"]), "--data")
    module = backbone.build(config.model.name, manifest.num_classes, heads=config.heads, stem=config.model.stem)
    module.load_state_dict(load_file(checkpoint / MODEL))
    world = dist.start(config.dist.timeout)
    module.to(world.device).eval()
    network = Network(module, world.device, config.engine.precision, config.engine.channels_last)
    figures = evaluate(network, manifest, config, world)
    dist.stop()
    return figures if world.rank == 0 else {}
