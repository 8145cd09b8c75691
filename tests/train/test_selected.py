"""Subset, overlay and balance through the whole loop: what is learnt, what is resumed, what is held out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from runs import trained

from pipeline.cli import main
from pipeline.config import Config
from pipeline.record.track import read_metrics
from pipeline.train.dist import World
from pipeline.train.inputs import Inputs
from pipeline.train.loop import Training
from pipeline.train.stored import StoredRun
from shards.errors import InputError
from shards.manifest import Manifest

Configured = Callable[..., Config]


def test_what_is_selected_is_learnt_and_nothing_else(
    configured: Configured, world: World, photos: Manifest, tmp_path: Path
) -> None:
    """Every label corrected, an eighth dropped, half taken: the samples, labels and state are those of the plan."""
    overlay = tmp_path / "clean.csv"
    lines = [f"{i},{'drop' if i % 8 == 0 else label}" for i, label in enumerate(photos.clean_labels)]
    overlay.write_text("\n".join(["id,label", *lines, ""]))
    config = configured(data__relabel=str(overlay), data__subset="1/2", optim__epochs=3)
    training = trained(config, world)
    active = training.selection.active
    assert 40 < len(active) < 60 and not (active % 8 == 0).any()
    steps = len(active) // 24
    assert [r["samples"] for r in read_metrics(config.folder) if r["kind"] == "train"][-1] == 3 * steps * 24
    rows = training.objective.banks["alasca"].rows
    assert len(rows) == len(active) and (rows.abs().sum(dim=1) > 0).sum() >= steps * 24
    # The labels that reach the loss are the overlay's.
    given = np.zeros(3)
    for step in range(steps):
        given += np.bincount(photos.clean_labels[training.plan.batch(0, step)], minlength=3)
    fed = np.zeros(3)
    again = Training(
        configured(run__name="again", data__relabel=str(overlay), data__subset="1/2"), Inputs.open(config, 1), world
    )
    for _ in range(steps * 4):
        fed += np.bincount(next(again.feed).labels.numpy(), minlength=3)
    assert fed.tolist() == given.tolist()


def test_a_changed_selection_is_refused(configured: Configured, world: World, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.csv"
    overlay.write_text("id,label\n3,drop\n")
    trained(configured(data__relabel=str(overlay), run__max_steps=3), world)
    moved = overlay.rename(tmp_path / "moved.csv")
    trained(configured(data__relabel=str(moved), run__resume="auto", run__max_steps=5), world)
    for change in ({"data__relabel": None}, {"data__relabel": str(moved), "data__subset": 0.9}):
        with pytest.raises(InputError, match=r"data.subset and data.relabel \(fingerprint\)"):
            trained(configured(run__resume="auto", **change), world)
    with pytest.raises(InputError, match=r"data.balance \(False there, True here\)"):
        trained(configured(data__relabel=str(moved), run__resume="auto", data__balance=True), world)


def test_balanced_epochs_train_and_say_what_lanes_lack(configured: Configured, world: World, photos: Manifest) -> None:
    config = configured(data__balance=96, data__lanes=8, data__micro_batch=4, optim__epochs=2)
    training = trained(config, world)
    assert training.plan.steps_per_epoch == 3
    records = read_metrics(config.folder)
    (lacking,) = [r for r in records if r["kind"] == "balance"]
    deficit = training.plan.deficit(0)
    found = {k.removeprefix("lacking/"): n for k, n in lacking.items() if k.startswith("lacking/")}
    assert deficit and found == {photos.classes[k]: n for k, n in deficit.items()}
    trained(config.model_copy(update={"run": config.run.model_copy(update={"name": "cut", "max_steps": 3})}), world)
    trained(config.model_copy(update={"run": config.run.model_copy(update={"name": "cut", "resume": "auto"})}), world)
    cut = read_metrics(config.folder.with_name("cut"))
    assert [r["kind"] for r in cut].count("balance") == 1
    assert [r["samples"] for r in records if r["kind"] == "train"][-1] == 2 * 96


def test_held_out_samples_are_evaluated_and_only_they(
    configured: Configured, world: World, photos: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The paper's two stages of HAR: halves of the training set, errors of each on the other, weights from both."""
    for part in (1, 2):
        config = configured(run__name=f"half{part}", data__subset=f"{part}/2", method__aux="none", optim__epochs=1)
        trained(config, world)
    run = StoredRun(config.folder)
    manifest, part = run.held_out()
    ids = part.ids
    assert len(ids) == 60 and not np.isin(ids, Inputs.open(config, 1).selection.active).any()
    figures = run.evaluate(manifest, world, part)
    assert figures["images"] == 60
    errors = run.class_errors(manifest, world, part)
    counts = np.bincount(photos.labels[ids])
    wrong = sum(errors[f"class-{k}"] * n for k, n in enumerate(counts))
    assert wrong / 60 == pytest.approx(1 - figures["main/top1"])

    whole = configured(run__name="whole", method__aux="none", optim__epochs=1)
    trained(whole, world)
    assert main(["eval", str(whole.folder), "--held-out"]) == 2
    assert "nothing of it is held out" in capsys.readouterr().err

    files = [tmp_path / "1.json", tmp_path / "2.json"]
    files[0].write_text('{"class-0": 0.2, "class-1": 0.4, "class-2": 1.0}')
    files[1].write_text('{"class-0": 0.4, "class-1": null, "class-2": 0.0}')  # it had no image of class-1
    har = {"class_errors": [str(file) for file in files]}
    config = configured(method__aux="none", method__penalty="har", method__har=har)
    penalty = Training(config, Inputs.open(config, 1), world).objective.penalty
    raw = np.array([0.3, 0.4, 0.5]) ** 0.6 / np.bincount(photos.labels) ** 0.4
    np.testing.assert_allclose(penalty._weights.numpy(), raw / raw.max(), rtol=1e-5)


def test_held_out_follows_the_overlay_and_refuses_other_files(
    configured: Configured, world: World, photos: Manifest, tmp_path: Path
) -> None:
    overlay, chosen = tmp_path / "clean.csv", tmp_path / "chosen.txt"
    lines = [f"{i},{'drop' if i % 8 == 0 else label}\n" for i, label in enumerate(photos.clean_labels)]
    overlay.write_text("".join(["id,label\n", *lines]))
    chosen.write_text("".join(f"{i}\n" for i in range(0, 120, 2)))
    config = configured(data__relabel=str(overlay), data__subset=str(chosen), method__aux="none", optim__epochs=1)
    trained(config, world)
    run = StoredRun(config.folder)
    manifest, part = run.held_out()
    assert part.ids.tolist() == [i for i in range(120) if i % 2 == 1 and i % 8 != 0]
    errors = run.class_errors(manifest, world, part)
    wrong = sum(errors[f"class-{k}"] * n for k, n in enumerate(np.bincount(photos.clean_labels[part.ids])))
    assert wrong / len(part.ids) == pytest.approx(1 - run.evaluate(manifest, world, part)["main/top1"])
    chosen.write_text("".join(f"{i}\n" for i in range(1, 120, 2)))  # now what it has seen would be held out
    with pytest.raises(InputError, match=r"data.subset and data.relabel \(fingerprint\) is no longer what it was"):
        run.held_out()
