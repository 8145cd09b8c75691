"""Penalties from the configuration to the weights, through the whole loop."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import trained

from pipeline.config import Config
from pipeline.method.lipschitz import HiddenGradients, InputJacobian
from pipeline.record.track import read_metrics
from pipeline.train.dist import World
from pipeline.train.inputs import Inputs
from pipeline.train.loop import Training
from pipeline.train.stored import StoredRun
from shards.errors import InputError
from shards.manifest import Manifest

Configured = Callable[..., Config]


@pytest.mark.parametrize(("penalty", "weight"), [("har", 0.1 / 128), ("jacobian", 0.01)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_penalty_joins_the_loss_with_its_papers_weight(
    configured: Configured, world: World, penalty: str, weight: float, precision: str
) -> None:
    config = configured(method__aux="none", method__penalty=penalty, engine__precision=precision, optim__epochs=1)
    trained(config, world)
    for r in [r for r in read_metrics(config.folder) if r["kind"] == "train"]:
        assert r["loss/penalty"] > 0
        assert r["loss"] == pytest.approx(r["loss/base"] + weight * r["loss/penalty"], rel=1e-5)


def test_a_heavier_penalty_makes_the_network_smoother(configured: Configured, world: World) -> None:
    last = {}
    for weight in (0.0, 3.0):
        config = configured(
            run__name=f"w{weight:.0f}",
            method__aux="none",
            method__penalty="jacobian",
            method__penalty_weight=weight,
            optim__epochs=6,
            optim__lr=0.02,
        )
        trained(config, world)
        last[weight] = [r for r in read_metrics(config.folder) if r["kind"] == "train"][-1]["loss/penalty"]
    assert last[3.0] < 0.5 * last[0.0]


def test_alasca_and_a_penalty_combine_and_resume(configured: Configured, world: World) -> None:
    changes = {"method__penalty": "har", "optim__epochs": 2}
    straight = trained(configured(run__name="straight", **changes), world)
    trained(configured(run__name="cut", run__max_steps=5, **changes), world)
    cut = trained(configured(run__name="cut", run__resume="auto", **changes), world)
    for a, b in zip(straight.engine.module.state_dict().values(), cut.engine.module.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_settings_reach_the_penalties(
    configured: Configured, world: World, tmp_path: Path, clean_photos: Manifest
) -> None:
    config = configured(method__aux="none", method__penalty="jacobian", method__jacobian={"n_proj": 3})
    penalty = Training(config, Inputs.open(config, 1), world).objective.penalty
    assert isinstance(penalty, InputJacobian)
    assert penalty._n_proj == 3
    # The paper's two stages: a run, its errors by class, a run with weights from them.
    first = configured(run__name="first", optim__epochs=1)
    trained(first, world)
    errors = StoredRun(first.folder).class_errors(clean_photos, world)
    assert set(errors) == {"class-0", "class-1", "class-2"}
    overall = StoredRun(first.folder).evaluate(clean_photos, world)["main/top1"]
    counts = np.bincount(clean_photos.labels)
    assert sum(e * n for e, n in zip(errors.values(), counts, strict=True)) / 47 == pytest.approx(1 - overall)
    file = tmp_path / "errors.json"
    file.write_text(json.dumps({"class-0": 0.5, "class-1": 0.25, "class-2": 0.0}))
    har = {"class_errors": str(file)}
    config = configured(run__name="second", method__aux="none", method__penalty="har", method__har=har)
    inputs = Inputs.open(config, 1)
    penalty = Training(config, inputs, world).objective.penalty
    assert isinstance(penalty, HiddenGradients)
    counts = np.bincount(inputs.manifest.labels)
    raw = np.array([0.5, 0.25, 0.0]) ** 0.6 / counts**0.4
    np.testing.assert_allclose(penalty._weights.numpy(), raw / raw.max(), rtol=1e-5)


@pytest.mark.parametrize(
    "text", ["", "[0.5, 0.5, 0.5]", '{"class-0": 0.5}', '{"class-0": 0.5, "class-1": 2, "class-2": null}']
)
def test_class_errors_that_do_not_fit_are_refused(configured: Configured, tmp_path: Path, text: str) -> None:
    file = tmp_path / "errors.json"
    file.write_text(text)
    config = configured(method__aux="none", method__penalty="har", method__har={"class_errors": str(file)})
    with pytest.raises(InputError, match="method.har.class_errors"):
        Inputs.open(config, 1)


def test_a_run_is_set_in_relation_to_its_reference(configured: Configured, world: World) -> None:
    har = configured(run__name="har", method__aux="none", method__penalty="har")
    with pytest.raises(InputError, match="track.reference"):
        Inputs.open(configured(track__reference=str(har.folder)), 1)
    trained(har, world)
    ours = configured(track__reference=str(har.folder))
    trained(ours, world)
    theirs = {(r["kind"], r["step"]): r for r in read_metrics(har.folder)}
    for r in read_metrics(ours.folder):
        other = theirs[r["kind"], r["step"]]
        if r["kind"] == "train":
            assert r["vs_reference/images_per_s"] == pytest.approx(r["images_per_s"] / other["images_per_s"])
            assert r["vs_reference/step_seconds"] == pytest.approx(1 / r["vs_reference/images_per_s"])
        else:
            assert r["vs_reference/main/top1"] == pytest.approx(r["main/top1"] - other["main/top1"])
            assert r["vs_reference/averaged/top1"] == pytest.approx(r["averaged/top1"] - other["main/top1"])
