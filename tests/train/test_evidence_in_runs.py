"""Evidence on labels in the record of a run: that of a step, absent where nothing is known, as ranks add it up."""

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from runs import trained

from pipeline.config import Config
from pipeline.data.pixels import normalise
from pipeline.record.track import read_metrics
from pipeline.train.dist import World
from pipeline.train.inputs import Inputs
from pipeline.train.loop import Training
from shards.manifest import Manifest

Configured = Callable[..., Config]


def test_the_record_of_a_step_is_what_its_images_say(configured: Configured, world: World, photos: Manifest) -> None:
    alasca = {"confidence": "current", "warmup_epochs": 0}
    config = configured(run__max_steps=1, track__every=1, method__alasca=alasca)
    training = Training(config, Inputs.open(config, 1), world)
    net = deepcopy(training.engine.module).train()
    training.run()
    training.close()
    (record,) = (r for r in read_metrics(config.folder) if r["kind"] == "train")
    # The same images once more, from a feed of their own.
    feed = Inputs.open(config, 1).feed(config, world, 0, 1)
    said, probability, given, clean = [], [], [], []
    for batch in feed:
        with torch.no_grad():
            main, _ = net(normalise(batch.images, channels_last=True))
        given += batch.labels.tolist()
        clean += photos.clean_labels[batch.positions.numpy()].tolist()
        said += main.argmax(dim=1).tolist()
        probability += main.softmax(dim=1).gather(1, batch.labels.unsqueeze(1)).squeeze(1).tolist()
    feed.close()
    said, given, clean, p = (np.array(values) for values in (said, given, clean, probability))
    right, kept = given == clean, p > 0.5
    assert 0 < right.sum() < 24 == len(right)
    wanted = {
        "true_top1": (said == clean).mean(),
        "memorised": (said == given)[~right].mean(),
        **{f"{kind}_right": p[right].mean() for kind in ("probability", "confidence")},
        **{f"{kind}_wrong": p[~right].mean() for kind in ("probability", "confidence")},
        "precision": right[kept].mean() if kept.any() else -1.0,
        "recall": kept[right].mean(),
    }
    found = {name.removeprefix("evidence/"): r for name, r in record.items() if name.startswith("evidence/")}
    if not kept.any():
        assert found["precision"] is None
        found["precision"] = -1.0
    assert found == pytest.approx(wanted, rel=1e-4)
    assert record["confidence"] == pytest.approx(p.mean(), rel=1e-4)


def test_without_true_labels_there_is_none(configured: Configured, world: World, clean_photos: Manifest) -> None:
    config = configured(data__train=str(clean_photos.root), optim__epochs=1)
    assert (clean_photos.clean_labels < 0).all()
    trained(config, world)
    records = [r for r in read_metrics(config.folder) if r["kind"] == "train"]
    assert records and not any(name.startswith("evidence/") for r in records for name in r)


def test_plain_training_memorises_and_the_record_says_so(configured: Configured, world: World) -> None:
    """Small, slow data: after a while the network predicts wrong labels that it did not predict before."""
    config = configured(method__aux="none", optim__epochs=30, optim__lr=0.02, eval__every=30, data__flip=False)
    config = config.model_copy(update={"data": config.data.model_copy(update={"augment": "none"})})
    trained(config, world)
    records = [r for r in read_metrics(config.folder) if r["kind"] == "train"]
    memorised = [r["evidence/memorised"] for r in records if r["evidence/memorised"] is not None]
    assert np.mean(memorised[-10:]) > np.mean(memorised[5:20]) + 0.3
    assert not any("evidence/precision" in r for r in records)  # cross-entropy trusts all labels alike
