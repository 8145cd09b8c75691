"""Where drills take place: small datasets, tiny runs over them, commands that start them, undisturbed runs."""

import shutil
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from drills import record
from drills.job import BIN, TRAIN, Failed, Job
from shards.build import build
from shards.noise import parse
from shards.readers import find

LAUNCHERS = ("torchrun", "deepspeed", "python")
SAVE_EVERY = 4  # steps
STEPS_PER_EPOCH = 20  # of short and long

_LONG_S = 240.0  # that a run to its end may take


@dataclass(frozen=True)
class _Length:
    """What makes a configuration: crops of 16 pixels, steps of about 0.1 s."""

    data: str
    micro_batch: int
    epochs: int
    lr: float
    evaluate_every: int = 1  # epochs


_CONFIGS = {
    # 3 x 20 steps; a small learning rate leaves little room for rounding, where the number of processes changes
    "short": _Length("few", 15, 3, 0.0001),
    "long": _Length("few", 15, 8, 0.01),  # 8 x 20 steps
    "wide": _Length("many", 15, 2, 0.01, 2),  # 2 x 100 steps
}
_CLASSES = {"few": (40, 30), "many": (2000, 3)}  # and images of each; many make a bank that takes a while to save


class Scene:
    """Datasets, configurations (short, long, wide) and runs in a folder.

    Args:
        folder: empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._straight, self._data = folder, dict[tuple[str, int], Path](), dict[str, Path]()

    def config(self, name: str) -> Path:
        """The configuration file of that name; its dataset is made when it is first asked for."""
        file = self.folder / f"{name}.toml"
        if file.exists():
            return file
        length = _CONFIGS[name]
        train = self.data(length.data)
        test = self.data("test") if length.data == "few" else train
        file.write_text(
            f"""
            run = {{ dir = "{self.folder / "runs"}" }}
            data = {{ train = "{train}", lanes = 4, micro_batch = {length.micro_batch}, crop = 16, workers = 1 }}
            model = {{ name = "resnet20" }}
            method = {{ aux = "alasca" }}
            optim = {{ epochs = {length.epochs}, lr = {length.lr} }}
            track = {{ every = 1, norms = 0, wandb = "disabled" }}
            checkpoint = {{ every_steps = {SAVE_EVERY} }}
            eval = {{ every = {length.evaluate_every}, test = {{ data = "{test}" }} }}
            dist = {{ timeout = 60, heartbeat = 10 }}
            """,
            encoding="utf-8",
        )
        return file

    def run(self, name: str) -> Path:
        """Folder of a run."""
        return self.folder / "runs" / name

    def start(
        self,
        launcher: str,
        config: str,
        name: str,
        *words: str,
        world: int = 2,
        env: dict[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> Job:
        """Start or go on with a run.

        Args:
            launcher: torchrun, deepspeed or python (one process).
            config: short, long or wide.
            name: of the run.
            words: of the training command, besides; `--resume` is auto.
            world: processes.
            env: on top of ours.
            options: of the launcher.
        """
        command = {
            "torchrun": [
                sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)
            ],
            "deepspeed": [str(BIN / "deepspeed"), "--num_accelerators", str(world), "--master_port", str(free_port())],
            "python": [sys.executable],
        }[launcher]  # fmt: skip
        return self.job([*command, *options], config, name, *words, env=env)

    def job(
        self,
        launcher: Sequence[str],
        config: str,
        name: str,
        *words: str,
        env: dict[str, str] | None = None,
        log: str = "",
    ) -> Job:
        """The same with a launcher's own words; `log` tells apart those of several agents."""
        command = [*launcher, TRAIN, str(self.config(config)), "--run.name", name, "--resume", "auto", *words]
        return Job(command, self.folder / f"{name}{log}.log", env)

    def finish(self, launcher: str, config: str, name: str, *words: str, world: int = 2) -> int:
        """Let a run come to its end, and return its launcher's status.

        Raises:
            Failed: it does not end in time.
        """
        with self.start(launcher, config, name, *words, world=world) as job:
            return job.status(_LONG_S)

    def straight(self, config: str, world: int) -> Path:
        """The undisturbed run; made when it is first asked for."""
        key = (config, world)
        if key not in self._straight:
            launcher = "python" if world == 1 else "torchrun"
            folder = f"straight-{config}-{world}"
            if status := self.finish(launcher, config, folder, world=world):
                text = (self.folder / f"{folder}.log").read_text(errors="replace")
                raise Failed(f"the undisturbed run ended with {status}:\n{text[-3000:]}")
            self._straight[key] = self.run(folder)
        return self._straight[key]

    def copy_of_straight(self, config: str, world: int, name: str) -> Path:
        """A copy of the undisturbed run, under another name."""
        shutil.copytree(self.straight(config, world), self.run(name))
        return self.run(name)

    def left_by(self, name: str) -> list[str]:
        """Partial files in a run's folder."""
        return record.partial(self.run(name))

    def data(self, name: str) -> Path:
        """A dataset, few, many or test; made when it is first asked for."""
        if name not in self._data:
            self._data[name] = self._dataset(name)
        return self._data[name]

    def _dataset(self, name: str) -> Path:
        """Classes told apart by colour, under pixel noise, a fifth of the labels wrong where they are learnt."""
        rng, (classes, each) = np.random.default_rng(int(name == "test")), _CLASSES.get(name, _CLASSES["few"])
        raw = self.folder / "raw" / name
        colours = np.random.default_rng(7).integers(40, 216, (classes, 3))
        for label in range(classes):
            folder = raw / f"class-{label:04d}"
            folder.mkdir(parents=True)
            for number in range(each):
                pixels = np.clip(colours[label] + rng.normal(0, 40, (24, 18, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:04d}.jpg", quality=90)
        noise = None if name == "test" else parse("symmetric:0.2")
        out = self.folder / "data" / name
        return build(find("imagefolder")(raw, None), out, noise=noise, samples_per_shard=50, workers=1).root


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
