"""An epoch of a dataset as training reads it, without the training."""

from contextlib import closing

import torch

from pipeline.data.batch import Batch
from pipeline.data.loader import EvalBatches, Feed, TrainBatches, train_keys
from pipeline.data.plan import Plan
from shards.manifest import Manifest

LANES = 2
VIEW = {"crop": 16, "augment": "resized_crop", "max_pixels": 178_956_970}


def order(manifest: Manifest) -> Plan:
    """Micro-batches of 10."""
    return Plan(manifest, lanes=LANES, micro_batch=10, seed=4, shuffle_shards=1)


def feed(manifest: Manifest, workers: int = 0) -> Feed:
    """One epoch."""
    plan = order(manifest)
    batches = TrainBatches(manifest, plan, manifest.labels, flip=True, **VIEW)
    return Feed(batches, train_keys(plan, range(LANES), 0, plan.steps_per_epoch), workers, pin=False)


def epoch(manifest: Manifest) -> list[Batch]:
    with closing(feed(manifest)) as batches:
        return list(batches)


def in_order(manifest: Manifest) -> Batch:
    """All samples by id, each seen whole."""
    return EvalBatches(manifest, **VIEW)[0, manifest.num_samples]


def same(some: list[Batch], others: list[Batch]) -> bool:
    fields = ("images", "labels", "positions", "valid")
    pairs = zip(some, others, strict=True)
    return all(torch.equal(getattr(a, field), getattr(b, field)) for a, b in pairs for field in fields)
