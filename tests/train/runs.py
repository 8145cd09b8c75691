"""A run in this process, from its configuration to its end."""

from pipeline.config import Config
from pipeline.train.dist import World
from pipeline.train.inputs import Inputs
from pipeline.train.loop import Training


def trained(config: Config, world: World) -> Training:
    training = Training(config, Inputs.open(config, 1), world)
    try:
        training.run()
    finally:
        training.close()
    return training
