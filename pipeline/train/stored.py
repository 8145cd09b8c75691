"""A run as it lies on disk: its configuration and the network of its newest checkpoint."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from pipeline import configfile
from pipeline.data.loader import Part
from pipeline.data.selection import select
from pipeline.model import backbone
from pipeline.model.pair import Pair, build_networks
from pipeline.train.anchors import anchors, probabilities
from pipeline.train.bad import BadImages
from pipeline.train.checkpoint import evaluated, newest, read_index
from pipeline.train.dist import World
from pipeline.train.evaluate import Answers, class_errors, evaluate, open_dataset
from pipeline.train.identity import identity
from pipeline.train.network import Network
from shards.errors import InputError
from shards.manifest import Manifest
from shards.progress import Progress, for_user

Figures = TypeVar("Figures")


class StoredRun:
    """Opens a run's folder; `config` and `classes` are those it was trained with, `step` its newest checkpoint's.

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
        index = read_index(checkpoint)
        self.step: int = index["step"]
        self._identity: dict[str, Any] = index["identity"]
        self.classes: tuple[str, ...] = tuple(index["classes"])

    def held_out(self) -> tuple[Manifest, Part]:
        """The dataset it was trained on, and what `data.subset` left out of it, with the labels of `data.relabel`.

        Raises:
            InputError: dataset, subset or overlay are no longer those it was trained with, or nothing was left out.
        """
        data = self.config.data
        manifest = open_dataset(data.train, "data.train", data.fetched)
        mine = select(manifest, data.subset, data.relabel)
        now = identity(self.config, manifest, mine)
        changed = [name for name in now if name.startswith("data.") and self._identity.get(name) != now[name]]
        if changed:
            raise InputError(
                f"{self.config.run.name}: {', '.join(changed)} is no longer what it was trained with, so what it has"
                " not seen is unknown: put the files back, or give --data"
            )
        whole = select(manifest, None, data.relabel)
        ids = np.setdiff1d(whole.ids, mine.ids, assume_unique=True)
        if not len(ids):
            raise InputError(
                f"{self.config.run.name} was trained on all of {manifest.place}, so nothing of it is held out: train"
                " with --data.subset 1/2, or give --data"
            )
        return manifest, Part(ids, whole.labels)

    def evaluate(self, manifest: Manifest, world: World, part: Part | None = None) -> dict[str, float]:
        """Accuracy on a dataset of the same classes (or on a part of it); the ranks share the images.

        See `evaluate` for the figures.

        Raises:
            InputError: too many images that do not decode.
        """
        figures = self._over(evaluate, manifest, world, part)
        assert figures is not None, "nothing cuts it off"
        return figures

    def class_errors(self, manifest: Manifest, world: World, part: Part | None = None) -> dict[str, float | None]:
        """Error of each class on a dataset of the same classes (or on a part of it); see `class_errors`.

        Raises:
            InputError: too many images that do not decode.
        """
        return self._over(class_errors, manifest, world, part)

    def noise_matrix(
        self, manifest: Manifest, world: World, part: Part | None = None, percentile: float = 100.0
    ) -> NDArray[np.float64]:
        """Anchor-point estimate of the noise matrix, [K, K]: row i is what the network says of class i's anchor.

        Patrini et al. 2017; the network was trained by plain cross-entropy on the noisy labels, and the
        set holds images of the same kind, such as those it was trained on. Labels of the set are not looked at.

        Raises:
            InputError: the run was corrected already, so that it speaks of true classes; see also `anchors`.
        """
        if self.config.method.base == "forward":
            raise InputError(
                f"{self.config.run.name} was trained with method.base = 'forward', so it predicts true classes and not"
                " labels: estimate the noise from a run with method.base = 'ce'"
            )
        found = self._over(partial(anchors, percentile=percentile), manifest, world, part)
        ids, place = np.unique(found, return_inverse=True)  # one image may stand for several classes
        return self._over(probabilities, manifest, world, Part(ids, manifest.labels))[place]

    def module(self, device: torch.device) -> backbone.Backbone | Pair:
        """The module of the newest checkpoint, the EMA if it has one, in evaluation mode on a device."""
        model, config = self.config.model, self.config
        make = partial(
            backbone.build,
            model.name,
            len(self.classes),
            heads=config.heads,
            stem=model.stem,
            width=model.width,
        )
        module = build_networks(make, config.method.networks, config.run.seed)
        module.load_state_dict(load_file(evaluated(self._checkpoint)))
        return module.to(device).eval()

    def network(self, world: World) -> Network:
        """The same in the run's precision and layout, on this process's device."""
        engine = self.config.engine
        return Network(self.module(world.device), world.device, engine.precision, engine.channels_last)

    def _over(
        self, measure: Callable[[Answers], Figures], manifest: Manifest, world: World, part: Part | None
    ) -> Figures:
        bad = BadImages(manifest, self.config.data.max_bad_fraction, of=None if part is None else len(part.ids))
        with for_user() if world.rank == 0 else Progress() as progress:
            figures = measure(
                Answers(self.network(world), manifest, self.config, world, bad, part=part, progress=progress)
            )
        for found in bad.agree():
            if world.rank == 0:
                print(f"warning: {found['key']} does not decode: {found['reason']}", file=sys.stderr)
        return figures
