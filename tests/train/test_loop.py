"""Whole runs in this process: what they learn, what they record, how they resume, what they refuse."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import trained
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.config import Config
from pipeline.record.metrics import timeless
from pipeline.record.track import read_metrics
from pipeline.train.checkpoint import damage
from pipeline.train.checkpoints import Checkpoints
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


def test_resume_is_bit_for_bit_at_any_worker_count(configured: Configured, world: World) -> None:
    changes = {"checkpoint__every_steps": 7, "optim__epochs": 4, "track__norms": 3}
    straight = trained(configured(run__name="straight", **changes), world)
    config = configured(run__name="cut", **changes)
    cut = Training(config, Inputs.open(config, 1), world)
    cut.checkpoints.save = _dies_after(14, cut.checkpoints)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    cut.tracker.close()
    with (config.folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 15}\n{"torn')
    config = configured(run__name="cut", run__resume="auto", data__workers=2, **changes)
    resumed = Training(config, Inputs.open(config, 1), world)
    assert resumed.start == 14
    resumed.run()

    for a, b in zip(
        straight.engine.module.state_dict().values(), resumed.engine.module.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
    assert torch.equal(straight.objective.banks["alasca"].rows, resumed.objective.banks["alasca"].rows)
    assert straight.objective.banks["alasca"].rows.abs().sum() > 0
    momenta = [
        [s["momentum_buffer"] for s in run.engine.optimizer.state_dict()["state"].values()]
        for run in (straight, resumed)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*momenta, strict=True))
    records = [[timeless(r) for r in read_metrics(run.config.folder)] for run in (straight, resumed)]
    assert records[0] == records[1]
    assert records[0][-1]["step"] == 20
    norms = [r for r in records[0] if r["kind"] == "norms"]
    assert [r["step"] for r in norms] == [3, 6, 9, 12, 15, 18]
    assert all(r["input"] > 0 and r["hidden/stage1"] > 0 for r in norms)
    saved = [
        load_file(run.config.folder / "checkpoints/step-000000020/model.safetensors") for run in (straight, resumed)
    ]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


def _dies_after(step: int, checkpoints: Checkpoints) -> Callable[..., None]:
    save = checkpoints.save

    def saving(done: int, **state: Any) -> None:
        save(done, **state)
        if done == step:
            checkpoints.finish()
            raise KeyboardInterrupt

    return saving


def test_checkpoints_are_whole_and_few(configured: Configured, world: World) -> None:
    training = trained(configured(optim__epochs=4), world)
    folder = training.config.folder / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-000000015", "step-000000020"]
    newest = folder / "step-000000020"
    assert damage(newest) is None
    with (newest / "model.safetensors").open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    assert damage(newest) == "model.safetensors is not what was written"
    with pytest.raises(InputError, match=r"nor a whole checkpoint: model.safetensors"):
        training.checkpoints.choose(str(newest))
    # The damaged one is skipped; the run goes on from the one before and ends the same.
    resumed = trained(training.config.model_copy(update={"run": _resuming(training.config)}), world)
    assert resumed.start == 15
    for a, b in zip(
        training.engine.module.state_dict().values(), resumed.engine.module.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
    index = folder / "step-000000020" / "index.json"
    whole = index.read_bytes()
    for text in (
        b"{",
        b"[]",
        b"null",
        whole.replace(b'"files"', b'"fi\xe9es"'),
        b'{"files": 3}',
        b'{"files": {"x": 1}}',
    ):
        index.write_bytes(text)
        assert damage(index.parent), text
        assert training.checkpoints.choose("auto") == folder / "step-000000015"
    index.unlink()
    assert damage(index.parent) == "index.json is missing"
    assert training.checkpoints.choose("auto") == folder / "step-000000015"
    (folder / "step-000000015" / "index.json").unlink()  # and no run begins anew over what is left
    with pytest.raises(InputError, match="every checkpoint in .* is damaged"):
        training.checkpoints.choose("auto")


def _resuming(config: Config) -> Any:
    return config.run.model_copy(update={"resume": "auto"})


def test_a_checkpoint_runs_no_code(configured: Configured, world: World, tmp_path: Path) -> None:
    training = trained(configured(optim__epochs=1), world)
    checkpoint = training.checkpoints.paths()[-1]

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "owned",))

    def load() -> None:
        _, _, owns = training.checkpoints.load(checkpoint, torch.device("cpu"), training.plan.home(0, 1))
        assert len(list(owns)) == 1

    for name in ("rank-00000.safetensors", "optimizer.safetensors", "model.safetensors"):
        whole = (checkpoint / name).read_bytes()
        torch.save({"objective": Payload()}, checkpoint / name)
        with pytest.raises((ValueError, SafetensorError)):
            load()
        (checkpoint / name).write_bytes(whole)
    load()
    assert not (tmp_path / "owned").exists()


def test_going_on_from_an_older_checkpoint_drops_the_newer_ones(configured: Configured, world: World) -> None:
    straight = trained(configured(optim__epochs=4, checkpoint__keep=9), world)
    folder = straight.config.folder / "checkpoints"
    older = str(folder / "step-000000010")
    config = configured(optim__epochs=4, checkpoint__keep=1, run__resume=older)
    again = Training(config, Inputs.open(config, 1), world)
    assert [path.name[-2:] for path in straight.checkpoints.paths()] == ["05", "10"]
    assert max(r["step"] for r in read_metrics(config.folder)) == 10
    again.run()
    assert [path.name[-2:] for path in straight.checkpoints.paths()] == ["20"]
    for a, b in zip(
        straight.engine.module.state_dict().values(), again.engine.module.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


def test_a_run_that_goes_on_does_not_need_the_weights_it_began_with(
    configured: Configured, world: World, tmp_path: Path
) -> None:
    weights = tmp_path / "start.pt"
    torch.save(Inputs.open(configured(method__aux="none"), 1).module.state_dict(), weights)
    changes = {"model__pretrained": str(weights), "method__aux": "none", "optim__epochs": 2}
    trained(configured(run__max_steps=5, **changes), world)
    weights.unlink()
    assert trained(configured(run__resume="auto", **changes), world).start == 5
    with pytest.raises(InputError, match="start.pt"):
        Inputs.open(configured(run__name="other", run__resume="auto", **changes), 1)


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


def test_max_steps_pauses_a_run_that_goes_on_as_if_it_had_not(
    configured: Configured, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = trained(configured(run__name="straight"), world)
    paused = trained(configured(run__name="paused", run__max_steps=5), world)
    assert "stopped at step 5 of 10 (run.max_steps); to go on:\n" in capsys.readouterr().err
    assert not (paused.config.folder / "summary.json").exists()
    on = trained(configured(run__name="paused", run__resume="auto"), world)
    assert (paused.start, on.start) == (0, 5)
    assert (on.config.folder / "summary.json").exists()
    for a, b in zip(straight.engine.module.state_dict().values(), on.engine.module.state_dict().values(), strict=True):
        assert torch.equal(a, b)
