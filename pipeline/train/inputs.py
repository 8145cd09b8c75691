"""What a run is made from, opened and checked before its processes meet."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import torch

from pipeline.config import Config
from pipeline.data.loader import Feed, TrainBatches, lanes_of_a_worker, train_keys
from pipeline.data.plan import Plan
from pipeline.data.selection import Selection, select
from pipeline.model import backbone
from pipeline.model.pair import build_networks
from pipeline.record.reference import Reference
from pipeline.train.checkpoint import complete
from pipeline.train.compose import read_class_errors
from pipeline.train.dist import World
from pipeline.train.evaluate import open_dataset, open_set
from pipeline.train.forgetrate import known_forget_rate
from pipeline.train.noisematrix import noise_matrix
from shards.errors import InputError
from shards.manifest import INDEX, Manifest
from shards.mix import Mix

_SECONDS_TO_END = 30.0  # from a fetch that gave up to the end of the run, amply


@dataclass(frozen=True)
class Inputs:
    """Datasets, order and network of a run; the same in every process."""

    manifest: Manifest
    selection: Selection
    sets: dict[str, Manifest]
    plan: Plan
    module: torch.nn.Module

    @classmethod
    def open(cls, config: Config, world_size: int) -> Self:
        """Open datasets, cut the plan, build the network or the pair.

        Raises:
            InputError: a dataset that is missing, damaged, too small or of other classes; a subset or overlay that
                does not fit; lanes that the processes cannot share; an unknown network or weights that do not fit; a
                reference run, class errors, a noise matrix or a noise rate that are not there or do not fit; a pair
                whose networks would be equal; crops too small for the network; fetches that would be taken for a hang.
        """
        data, cache = config.data, config.data.fetched
        manifest = open_dataset(data.train, "data.train", cache)
        sets = {
            name: open_set(chosen.data, manifest.classes, f"eval.{name}.data", cache)
            for name, chosen in config.eval.sets.items()
        }
        if any(opened.fetches for opened in (manifest, *sets.values())):
            _fetch_gives_up_first(data.fetch_timeout, config.dist.timeout)
        selection = select(manifest, data.subset, data.relabel)
        plan = Plan(
            manifest,
            lanes=data.lanes,
            micro_batch=data.micro_batch,
            seed=config.run.seed,
            active=selection.active,
            balance=selection.labels if data.balance is not False else None,
            epoch_samples=None if isinstance(data.balance, bool) else data.balance,
            shuffle_shards=data.shuffle_shards,
        )
        plan.lanes_of(0, world_size)
        if config.track.reference is not None:
            Reference(Path(config.track.reference))
        if (class_errors := config.method.effective.har.class_errors) is not None:
            read_class_errors(class_errors, manifest)
        noise_matrix(config, manifest, selection)
        known_forget_rate(config, manifest, selection)
        model = config.model
        if data.crop < (least := backbone.least_image(model.name, model.stem)):
            way = "" if model.stem == "small" else ', or model.stem = "small"'
            raise InputError(
                f"data.crop = {data.crop}: the last stage of {model.name} is left one pixel; take {least} or more{way}"
            )
        # A run that goes on takes its weights from the checkpoint; the file it began with may be gone.
        goes_on = config.run.resume != "none" and bool(complete(config.folder / "checkpoints"))
        pretrained = None if goes_on else config.pretrained
        make = partial(
            backbone.build,
            model.name,
            manifest.num_classes,
            heads=config.heads,
            pretrained=pretrained,
            stem=model.stem,
            width=model.width,
        )
        module = build_networks(make, config.method.networks, config.run.seed)
        return cls(manifest, selection, sets, plan, module)

    def warnings(self, config: Config) -> Iterator[str]:
        """One line where options do nothing, and one where others wrote the tars and their samples are not shuffled."""
        if idle := config.method.idle:
            given = ", ".join(
                f"method.{name} = {list(value) if isinstance(value, tuple) else value!r}"
                for name, value in idle.items()
            )
            chosen = ", ".join(
                f"{name} = '{getattr(config.method, name)}'" for name in ("base", "aux", "pair", "penalty")
            )
            yield f"{given}: without effect in a method of {chosen}"
        manifest = self.manifest
        if manifest.source.get("reader") == INDEX:
            mix = Mix.of(self.selection.active_labels, manifest.num_classes, self.plan.lanes)
            if mix.bad:
                words = mix.warning(manifest.classes)
                yield f"{manifest.place}: {words}; `alasca shard webdataset` writes them shuffled"

    def feed(self, config: Config, world: World, start: int, stop: int) -> Feed:
        """A rank's micro-batches, from one step of the run to another."""
        data, lanes = config.data, self.plan.lanes_of(world.rank, world.size)
        dataset = TrainBatches(
            self.manifest,
            self.plan,
            self.selection.labels,
            crop=data.crop,
            augment=data.augment,
            flip=data.flip,
            max_pixels=data.max_pixels,
            lanes=lanes_of_a_worker(len(lanes), data.workers),
            views=config.method.views,
        )
        keys = train_keys(self.plan, lanes, start, stop)
        return Feed(dataset, keys, data.workers, pin=world.device.type == "cuda")


def _fetch_gives_up_first(fetch: float, hang: float) -> None:
    """A fetch that fails knows its file and the reason; a hang only that data were waited for."""
    least = fetch + _SECONDS_TO_END
    if hang < least:
        raise InputError(
            f"dist.timeout = {hang:g} would call a fetch that may take data.fetch_timeout = {fetch:g} s a hang: set it"
            f" to {least:g} or more, or lower data.fetch_timeout"
        )
