"""One tiny configuration for all tests of launchers, and the undisturbed run that the others are held against."""

from pathlib import Path

import pytest
from jobs import BIN, free_port, launch

from shards.manifest import Manifest


@pytest.fixture(scope="session")
def config(photos: Manifest, clean_photos: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty steps of a network with BatchNorm under ALASCA and HAR, every one recorded; a data worker a rank.

    The learning rate is small because rounding alone drives equal float32 runs apart: a ReLU whose input lies within
    rounding of zero flips, and that moves the gradients by far more than the rounding did.
    """
    folder = tmp_path_factory.mktemp("launch")
    file = folder / "tiny.toml"
    file.write_text(
        f"""
        run = {{ dir = "{folder}" }}
        data = {{ train = "{photos.root}", lanes = 4, micro_batch = 6, crop = 16, workers = 1 }}
        model = {{ name = "resnet20" }}
        method = {{ aux = "alasca", penalty = "har" }}
        optim = {{ epochs = 8, lr = 0.0001, schedule = "constant", ema = 0.8 }}
        track = {{ every = 1, norms = 0, wandb = "disabled" }}
        checkpoint = {{ keep = 9 }}
        eval = {{ every = 4, test = {{ data = "{clean_photos.root}" }} }}
        """
    )
    return file


@pytest.fixture(scope="session")
def two(config: Path) -> Path:
    """Two ranks under deepspeed."""
    command = [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", str(free_port())]
    return launch(command, config, "two")
