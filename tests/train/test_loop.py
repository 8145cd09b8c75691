"""Whole runs in this process: what they learn, what they record, how they resume, what they refuse."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import trained

from pipeline.config import Config
from pipeline.record.track import read_metrics
from pipeline.train.dist import World
from pipeline.train.inputs import Inputs
from pipeline.train.loop import Training
from pipeline.train.stored import StoredRun
from shards.build import build
from shards.errors import InputError
from shards.manifest import Manifest
from shards.readers import find

Configured = Callable[..., Config]


def test_a_run_learns_and_records(configured: Configured, world: World, clean_photos: Manifest) -> None:
    config = configured(optim__epochs=10, track__wandb="offline")
    trained(config, world)
    records = read_metrics(config.folder)
    lines = [r for r in records if r["kind"] == "train"]
    assert [r["step"] for r in lines] == sorted({*range(2, 51, 2), *range(5, 51, 5)})
    for r in lines:
        assert r["samples"] == r["step"] * 24
        assert r["epoch"] == pytest.approx(r["step"] / 5)
        assert r["loss"] == pytest.approx(r["loss/base"] + 2.0 * r["loss/aux"], rel=1e-6)
        assert r["valid"] == r["images"]
        assert 0 < r["confidence"] <= 1
        assert 0 <= r["data_wait"] <= 1
        assert r["images_per_s"] == pytest.approx(r["images"] / r["seconds"])
        assert 0.1 < r["memory_gb"] < 20
    assert lines[0]["lr"] == pytest.approx(0.05 * 0.5 * (1 + np.cos(np.pi / 50)))
    assert lines[-1]["loss/base"] < lines[0]["loss/base"]
    # Smoothing: the confidence is exactly 1 in the first epoch, later below it.
    assert all((r["confidence"] == 1) == (r["step"] <= 5) for r in lines)
    evaluations = [r for r in records if r["kind"] == "eval"]
    assert [r["step"] for r in evaluations] == list(range(5, 51, 5))
    assert all(r["images"] == 47 and r["bad"] == 0 for r in evaluations)
    assert evaluations[-1]["main/top1"] > 0.8
    assert evaluations[-1]["averaged/top1"] > 0.8
    assert all(r["main/top1"] <= r["main/top5"] == 1 for r in evaluations)  # three classes
    summary = json.loads((config.folder / "summary.json").read_text())
    assert summary["sets"]["test"]["main/top1"] == evaluations[-1]["main/top1"]
    assert summary["steps"] == 50
    assert list(config.folder.glob("wandb/offline-run-*/*.wandb"))
    again = StoredRun(config.folder).evaluate(clean_photos, world)
    assert again["main/top1"] == evaluations[-1]["main/top1"]
    assert again["averaged/top1"] == evaluations[-1]["averaged/top1"]


def test_evaluation_counts_what_a_person_would_count(
    configured: Configured, world: World, clean_photos: Manifest
) -> None:
    training = trained(configured(), world)
    from pipeline.data.augment import eval_view
    from pipeline.data.decode import decode
    from pipeline.data.reader import ShardReader

    reader, right = ShardReader(clean_photos), 0
    training.engine.eval()
    for sample_id in range(clean_photos.num_samples):
        image = eval_view(decode(reader.image_bytes(sample_id), 10**6), 16, "resized_crop")
        with torch.no_grad():
            main, _ = training.engine.forward(torch.from_numpy(image)[None])
        right += int(main.argmax()) == int(clean_photos.labels[sample_id])
    last = [r for r in read_metrics(training.config.folder) if r["kind"] == "eval"][-1]
    assert last["main/top1"] == pytest.approx(right / 47)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data__train": "/nowhere"}, "/nowhere: no such folder"),
        ({"data__micro_batch": 31}, "120 samples are fewer than one global batch of 124"),
        ({"model__name": "resnet5"}, "resnet5"),
        ({"model__pretrained": "/nowhere.pt"}, "/nowhere.pt"),
        ({"eval__test": {"data": "/nowhere"}}, "/nowhere: no such folder"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(configured: Configured, change: dict, words: str) -> None:
    config = configured(**change)
    with pytest.raises(InputError, match=words):
        Inputs.open(config, 1)
    assert not Path(config.run.dir).exists()


def test_a_run_folder_that_cannot_be_made_is_named(configured: Configured, world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder, why in ((tmp_path / "file", "Not a directory"), (Path("/proc/nowhere"), "No such file")):
        config = configured(run__dir=str(folder))
        with pytest.raises(InputError, match=rf"run.dir: cannot write the run to {folder}/tiny: {why}"):
            Training(config, Inputs.open(config, 1), world)


def test_a_world_that_does_not_fit_and_other_classes_are_refused(
    configured: Configured, raw: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="3 processes cannot share data.lanes = 4"):
        Inputs.open(configured(), 3)
    shutil.copytree(raw, tmp_path / "raw")
    (tmp_path / "raw" / "class-1").rename(tmp_path / "raw" / "other")
    other = build(find("imagefolder")(tmp_path / "raw", None), tmp_path / "other", workers=1)
    with pytest.raises(InputError, match=r"eval\.test\.data = .* \(class-1, other\)"):
        Inputs.open(configured(eval__test={"data": str(other.root)}), 1)


@pytest.fixture(scope="module")
def two_bad(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("two-bad")
    shutil.copytree(raw, folder / "raw")
    for number in (3, 8):
        file = folder / "raw" / "class-0" / f"{number:04d}.jpg"
        file.write_bytes(file.read_bytes()[:300])
    return build(find("imagefolder")(folder / "raw", None), folder / "shards", samples_per_shard=30, workers=1)


def test_bad_images_weigh_nothing_and_are_named(configured: Configured, world: World, two_bad: Manifest) -> None:
    config = configured(data__train=str(two_bad.root), data__max_bad_fraction=0.02)
    training = trained(config, world)
    records = read_metrics(config.folder)
    assert {r["key"] for r in records if r["kind"] == "bad"} == {"class-0/0003.jpg", "class-0/0008.jpg"}
    assert all(r["reason"] for r in records if r["kind"] == "bad")
    images, valid = (sum(r[k] for r in records if r["kind"] == "train") for k in ("images", "valid"))
    assert (images, valid) == (240, 236)  # 120 samples in each of two epochs, two of them bad
    untouched = (training.objective.banks["alasca"].rows == 0).all(dim=1)
    bad_ids = [r["id"] for r in records if r["kind"] == "bad"]
    assert sorted(untouched.nonzero().flatten().tolist()) == sorted(bad_ids)


def test_too_many_bad_images_end_the_run_with_the_list(configured: Configured, world: World, two_bad: Manifest) -> None:
    config = configured(data__train=str(two_bad.root))
    with pytest.raises(
        InputError, match=r"[12] of 120 images in .* do not decode, over data.max_bad_fraction = 0.001"
    ) as e:
        trained(config, world)
    assert "class-0/000" in str(e.value)
    config = configured(run__name="evaluated", eval__test={"data": str(two_bad.root)})
    with pytest.raises(InputError, match="2 of 120 images"):
        trained(config, world)


@pytest.mark.parametrize(
    "change",
    [
        {"method__base": "gce"},
        {"method__base": "sce", "method__aux": "none"},
        {"method__base": "ls", "model__heads": "bottleneck"},
        {"engine__precision": "bfloat16", "optim__clip": 1.0, "optim__nesterov": True},
        {"method__alasca": {"confidence": "current", "warmup_epochs": 0}, "engine__channels_last": False},
        {"engine__bank_dtype": "bfloat16", "model__name": "resnet18", "model__stem": "small"},
    ],
    ids=lambda change: "-".join(str(v) for v in change.values())[:40],
)
def test_every_setting_trains(configured: Configured, world: World, change: dict) -> None:
    training = trained(configured(optim__epochs=1, **change), world)
    last = [r for r in read_metrics(training.config.folder) if r["kind"] == "train"][-1]
    assert np.isfinite(last["loss"])
    for name, parameter in training.engine.module.named_parameters():
        assert torch.isfinite(parameter).all(), name
        assert parameter.dtype == torch.float32
