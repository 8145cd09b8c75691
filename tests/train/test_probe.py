"""Linear evaluation of a tiny run against features and fits made by hand, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from pipeline import configfile
from pipeline.data.augment import eval_view
from pipeline.data.decode import decode
from pipeline.data.pixels import normalise
from pipeline.data.reader import ShardReader
from pipeline.train.dist import World
from pipeline.train.inputs import Inputs
from pipeline.train.loop import Training
from pipeline.train.probe import clean_labels, features, probe_run
from pipeline.train.stored import StoredRun
from shards.build import build
from shards.errors import InputError
from shards.manifest import Manifest
from shards.noise import parse
from shards.readers import find

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(photos: Manifest, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tables = {
        "run": {"dir": str(tmp_path_factory.mktemp("runs"))},
        "data": {"train": str(photos.root), "lanes": 4, "micro_batch": 6, "crop": 16, "workers": 0},
        "model": {"name": "resnet20"},
        "optim": {"epochs": 6, "lr": 0.05},
        "track": {"wandb": "disabled"},
    }
    config = configfile.parse(tables, name="probed", where="test")
    training = Training(config, Inputs.open(config, 1), world)
    training.run()
    training.feed.close()
    return config.folder


def by_hand(run: StoredRun, manifest: Manifest, ids: list[int]) -> dict[str, torch.Tensor]:
    """One image after the other, layer by layer."""
    net, reader = run.module(CPU), ShardReader(manifest)
    rows: dict[str, list[torch.Tensor]] = {"stage1": [], "stage2": [], "stage3": []}
    with torch.no_grad():
        for i in ids:
            view = eval_view(decode(reader.image_bytes(i), 10**6), 16, run.config.data.augment)
            h = F.relu(net.bn1(net.conv1(normalise(torch.from_numpy(view)[None], channels_last=False))))
            for number in (1, 2, 3):
                h = getattr(net, f"layer{number}")(h)
                rows[f"stage{number}"].append(h[0].mean(dim=(1, 2)))
    return {name: torch.stack(own) for name, own in rows.items()}


def test_it_reads_the_features_of_every_stage(folder: Path, photos: Manifest, clean_photos: Manifest) -> None:
    found = probe_run(folder, str(photos.root), str(clean_photos.root))
    assert json.loads(json.dumps(found)) == found
    assert (found["step"], found["train"]["images"], found["test"]["images"]) == (30, 120, 47)
    assert [(s["stage"], s["features"]) for s in found["stages"]] == [("stage1", 16), ("stage2", 32), ("stage3", 64)]
    assert all(s["converged"] and s["top1"] > 0.9 for s in found["stages"]), "colours: easy to tell apart"
    assert probe_run(folder, str(photos.root), str(clean_photos.root)) == found

    run = StoredRun(folder)
    train, test = by_hand(run, photos, list(range(120))), by_hand(run, clean_photos, list(range(47)))
    assert (photos.labels != photos.clean_labels).any()
    for stage in found["stages"]:
        x, z = train[stage["stage"]].double().numpy(), test[stage["stage"]].double().numpy()
        mean, std = x.mean(axis=0), x.std(axis=0)
        std[std < 1e-12] = 1.0
        model = LogisticRegression(max_iter=3000, tol=1e-6).fit((x - mean) / std, photos.clean_labels)
        right = model.predict((z - mean) / std) == clean_photos.labels
        assert stage["top1"] == pytest.approx(right.mean(), abs=1.5 / 47)


def test_features_are_those_of_a_hand_computation_and_state_stays(folder: Path, photos: Manifest) -> None:
    run = StoredRun(folder)
    module = run.module(CPU)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found, ids, bad = features(module, run, photos, limit=10**6)
    assert bad == 0 and ids.tolist() == list(range(120))
    wanted = by_hand(run, photos, list(range(120)))
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], values.numpy(), rtol=1e-3, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any(part._forward_hooks for part in module.modules())


def test_a_limit_takes_a_seeded_choice(folder: Path, photos: Manifest, clean_photos: Manifest) -> None:
    run = StoredRun(folder)
    every, _, _ = features(run.module(CPU), run, photos, limit=120)
    some, ids, _ = features(run.module(CPU), run, photos, limit=70)
    assert len(ids) == len(set(ids.tolist())) == 70 and (np.diff(ids) > 0).all()
    np.testing.assert_allclose(some["stage3"], every["stage3"][ids], rtol=1e-3, atol=1e-5)
    found = probe_run(folder, str(photos.root), str(clean_photos.root), limit=40)
    assert (found["train"]["images"], found["train"]["of"], found["test"]["images"]) == (40, 120, 40)


def test_a_stage_that_says_nothing_leaves_chance(
    folder: Path, photos: Manifest, clean_photos: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = StoredRun.module

    def silenced(run: StoredRun, device: torch.device) -> torch.nn.Module:
        module = whole(run, device)
        module.layer3.register_forward_hook(lambda _module, _args, output: torch.zeros_like(output))
        return module

    before = probe_run(folder, str(photos.root), str(clean_photos.root))["stages"]
    monkeypatch.setattr(StoredRun, "module", silenced)
    after = probe_run(folder, str(photos.root), str(clean_photos.root))["stages"]
    assert after[:2] == before[:2]
    # 40 images of each class to learn from, 15, 16, 16 to test on: any class is as good.
    assert after[2]["train_top1"] == pytest.approx(1 / 3) and after[2]["top1"] in (15 / 47, 16 / 47)


def test_undecodable_images_are_left_out_and_counted(folder: Path, photos: Manifest, raw: Path, tmp_path: Path) -> None:
    spoilt = shutil.copytree(raw, tmp_path / "spoilt")
    broken = [spoilt / "class-0" / "0003.jpg", spoilt / "class-2" / "0010.jpg"]
    for file in broken:
        file.write_bytes(file.read_bytes()[:200])
    test = build(find("imagefolder")(spoilt, None), tmp_path / "test", workers=1)
    found = probe_run(folder, str(photos.root), str(test.root))
    assert found["test"] == {"data": str(test.root), "images": 118, "bad": 2, "of": 120}
    run = StoredRun(folder)
    rows, ids, bad = features(run.module(CPU), run, test, limit=120)
    assert bad == 2 and len(rows["stage1"]) == len(ids) == 118
    lost = {test.key(i) for i in set(range(120)) - set(ids.tolist())}
    assert lost == {"class-0/0003.jpg", "class-2/0010.jpg"}


def test_labels_are_the_clean_ones(photos: Manifest, clean_photos: Manifest) -> None:
    assert (clean_labels(photos, trust=True) == photos.clean_labels).all()
    assert (clean_labels(photos, trust=True) != photos.labels).any()
    assert (clean_labels(clean_photos, trust=True) == clean_photos.labels).all()
    with pytest.raises(InputError, match="47 of 47 clean labels are unknown"):
        clean_labels(clean_photos, trust=False)


def test_mistakes_are_one_line(
    folder: Path, photos: Manifest, clean_photos: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = str(photos.root), str(clean_photos.root)

    def refuses(words: str, *args: object, **more: int) -> None:
        with pytest.raises(InputError, match=words) as caught:
            probe_run(*args, **more)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)

    refuses("47 of 47 clean labels are unknown: .* --labels-are-clean", folder, test, train)
    assert probe_run(folder, test, train, trust=True)["train"]["images"] == 47
    refuses("are one dataset", folder, train, train)
    refuses("--limit 0: must be 1 or more", folder, train, test, limit=0)
    refuses("1 images of 1 classes are too few", folder, train, test, limit=1)
    refuses("is no run", tmp_path, train, test)
    refuses("no such folder", folder, train, str(tmp_path / "none"))
    source = find("digits")(None, "test")
    other = build(source, tmp_path / "digits", noise=parse("symmetric:0.2"), workers=1)
    refuses("--train = .* has 10 classes", folder, str(other.root), test)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refuses("one process: start it without a launcher", folder, train, test)
