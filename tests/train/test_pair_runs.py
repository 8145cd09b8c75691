"""Pairs of networks in whole runs: what they learn and record, how they are read, resumed and refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from runs import trained
from safetensors.torch import load_file

from pipeline.config import Config
from pipeline.data.augment import eval_view
from pipeline.data.decode import decode
from pipeline.data.reader import ShardReader
from pipeline.data.selection import select
from pipeline.method.pairobjective import PairObjective
from pipeline.model.pair import Pair
from pipeline.record.metrics import timeless
from pipeline.record.track import read_metrics
from pipeline.train.dist import World
from pipeline.train.forgetrate import known_forget_rate
from pipeline.train.inputs import Inputs
from pipeline.train.loop import Training
from pipeline.train.memory import _bank_bytes
from pipeline.train.probe import probe_run
from pipeline.train.stored import StoredRun
from shards.errors import InputError
from shards.manifest import Manifest

Configured = Callable[..., Config]

COTEACHING: dict[str, Any] = {"method__pair": "coteaching", "method__coteaching": {"ramp_epochs": 2}}


def lines(training: Training, kind: str) -> list[dict[str, Any]]:
    return [r for r in read_metrics(training.config.folder) if r["kind"] == kind]


@pytest.fixture(scope="module")
def finished(
    photos: Manifest, clean_photos: Manifest, tmp_path_factory: pytest.TempPathFactory, world: World
) -> Training:
    """ALASCA on both of two networks that teach each other, with an average of the weights."""
    from runs import tiny

    folder = tmp_path_factory.mktemp("pair")
    changes = {"optim__epochs": 8, "optim__ema": 0.9, "track__every": 1, "track__norms": 5, **COTEACHING}
    return trained(tiny(photos, clean_photos, folder, **changes), world)


def test_alasca_and_coteaching_learn_together(finished: Training, photos: Manifest) -> None:
    records = lines(finished, "train")
    rate = float(np.mean(photos.labels != photos.clean_labels))
    assert rate == pytest.approx(0.2, abs=0.1)
    for r in records:
        assert r["loss"] == pytest.approx(r["loss/base"] + 2.0 * r["loss/aux"], rel=1e-5)
        left_out = rate * min((r["step"] - 1) // 5 / 2, 1)
        assert r["selected"] == pytest.approx(np.ceil(round(6 * (1 - left_out), 6)) / 6), r["step"]
        assert 0 <= r["agreement"] <= 1 and 0 < r["confidence"] <= 1
    # It trains: what it learns from is small, and more often right than labels are.
    early, later = (np.mean([r["loss/base"] for r in part]) for part in (records[:5], records[-5:]))
    assert later < 0.7 * early
    assert records[-1]["agreement"] > records[0]["agreement"]
    late = [r["evidence/precision"] for r in records[-15:]]
    assert np.mean(late) > 1 - rate
    assert lines(finished, "norms")[-1]["hidden/stage1"] > 0
    rows = [finished.objective.banks[f"network{n}/alasca"].rows for n in (1, 2)]
    assert all((each.abs().sum(dim=1) > 0).all() for each in rows) and not torch.allclose(*rows, atol=0.1)


def test_figures_are_of_each_network_and_of_both(finished: Training, world: World, clean_photos: Manifest) -> None:
    last = lines(finished, "eval")[-1]
    stored = StoredRun(finished.config.folder)
    module = stored.module(torch.device("cpu"))
    assert isinstance(module, Pair)
    reader = ShardReader(clean_photos)
    views = [eval_view(decode(reader.image_bytes(i), 10**6), 16, "resized_crop") for i in range(47)]
    with torch.no_grad():
        main, aux = stored.network(world)(torch.from_numpy(np.stack(views)))
    labels = torch.from_numpy(clean_photos.labels.astype(np.int64))
    answers = {
        "main": main[0],
        "averaged": main[0] + aux[-1][0],
        "network2": main[1],
        "ensemble": main[0] + main[1],
    }
    for name, logits in answers.items():
        assert last[f"{name}/top1"] == pytest.approx((logits.argmax(dim=1) == labels).float().mean().item()), name
        assert last[f"{name}/top5"] == 1
    assert last["main/top1"] > 0.6
    assert stored.evaluate(clean_photos, world)["loss"] == pytest.approx(last["loss"])
    errors = stored.class_errors(clean_photos, world)
    wrong = (main[0].argmax(dim=1) != labels).numpy()
    assert errors == pytest.approx(
        {name: float(wrong[clean_photos.labels == k].mean()) for k, name in enumerate(clean_photos.classes)}
    )
    assert stored.noise_matrix(clean_photos, world).shape == (3, 3)


def test_dividemix_tells_wrong_labels(configured: Configured, world: World, photos: Manifest) -> None:
    options = {"warmup_epochs": 3, "ramp_epochs": 2, "unlabelled_weight": 5.0}
    changes = {"optim__epochs": 6, "optim__lr": 0.02, "track__every": 5, "method__aux": "none"}
    run = trained(configured(method__pair="dividemix", method__dividemix=options, **changes), world)
    epochs = lines(run, "train")
    wrong = float(np.mean(photos.labels != photos.clean_labels))
    for r in epochs[:3]:
        assert "labelled" not in r and r["evidence/recall"] == 1 and r["evidence/precision"] == pytest.approx(1 - wrong)
    for r in epochs[3:]:
        assert r["labelled"] == pytest.approx(1 - wrong, abs=0.1)
        assert r["evidence/precision"] > 0.95 and r["evidence/recall"] > 0.85
        assert r["evidence/confidence_right"] > 0.8 > 0.2 > r["evidence/confidence_wrong"]
        assert 0 < r["loss/unlabelled"] < 0.2 and 0 < r["loss/prior"] < 0.2 < r["loss/labelled"]
    assert lines(run, "eval")[-1]["ensemble/top1"] > 0.9


def test_a_probe_is_of_the_first_network(
    finished: Training, photos: Manifest, clean_photos: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = probe_run(finished.config.folder, str(photos.root), str(clean_photos.root))
    pair = StoredRun(finished.config.folder).module(torch.device("cpu"))
    monkeypatch.setattr(StoredRun, "module", lambda self, device: pair.network1)
    assert found["stages"] and found == probe_run(finished.config.folder, str(photos.root), str(clean_photos.root))


@pytest.mark.parametrize(
    "changes",
    [
        {"method__pair": "decoupling", "method__aux": "deep", "engine__precision": "bfloat16"},
        {**COTEACHING, "method__base": "elr", "optim__clip": 1.0, "optim__ema": 0.9},
        {"method__pair": "coteaching+", "method__coteaching_plus": {"initial_epochs": 1}, "method__base": "gce"},
        {"method__pair": "dividemix", "method__dividemix": {"warmup_epochs": 1}, "data__workers": 1},
    ],
    ids=["decoupling", "coteaching", "coteaching+", "dividemix"],
)
def test_a_run_that_was_cut_ends_bit_for_bit_the_same(configured: Configured, world: World, changes: dict) -> None:
    """Within an epoch, after an evaluation; both networks, their momenta and banks."""
    changes = {"optim__epochs": 3, "checkpoint__every_steps": 4, "track__every": 1, **changes}
    straight = trained(configured(run__name="straight", **changes), world)
    trained(configured(run__name="cut", run__max_steps=8, **changes), world)
    cut = trained(configured(run__name="cut", run__resume="auto", **changes), world)
    assert cut.start == 8
    for name in ("model", "optimizer", "rank-00000", "ema")[: 4 if "optim__ema" in changes else 3]:
        files = [run.config.folder / f"checkpoints/step-000000015/{name}.safetensors" for run in (straight, cut)]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    records = [[timeless(r) for r in lines(run, "train")] for run in (straight, cut)]
    assert records[0] == records[1] and len(records[0]) == 15
    saved = load_file(files[0].parent / "model.safetensors")
    halves = [{k[9:]: v for k, v in saved.items() if k.startswith(f"network{n}.")} for n in (1, 2)]
    assert halves[0].keys() == halves[1].keys() and len(saved) == 2 * len(halves[0])
    assert not torch.equal(halves[0]["conv1.weight"], halves[1]["conv1.weight"])


def test_the_rate_is_given_or_counted(configured: Configured, photos: Manifest) -> None:
    selection = select(photos, None, None)
    wrong = float(np.mean(photos.labels != photos.clean_labels))
    for pair, section in (("coteaching", "coteaching"), ("coteaching+", "coteaching_plus")):
        counted = configured(method__pair=pair, optim__epochs=30)
        assert known_forget_rate(counted, photos, selection) == pytest.approx(wrong)
        given = configured(method__pair=pair, optim__epochs=30, **{f"method__{section}": {"forget_rate": 0.35}})
        assert known_forget_rate(given, photos, selection) == 0.35
    for other in ({}, {"method__pair": "decoupling"}):
        assert known_forget_rate(configured(**other), photos, selection) is None


def test_a_rate_that_nobody_knows_is_asked_for(
    configured: Configured, photos: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(method__pair="coteaching+", optim__epochs=30)
    unknown = np.full(photos.num_samples, -1)
    monkeypatch.setattr(Manifest, "clean_labels", property(lambda self: unknown))
    with pytest.raises(
        InputError, match=r"method.coteaching_plus.forget_rate: .* knows no clean labels .* such as 0.2"
    ):
        Inputs.open(config, 1)
    given = configured(method__pair="coteaching+", optim__epochs=30, method__coteaching_plus={"forget_rate": 0.3})
    assert isinstance(Inputs.open(given, 1).module, Pair)


def test_what_does_not_go_together_is_refused(configured: Configured, world: World) -> None:
    with pytest.raises(InputError, match="penalty = 'har' is for one network: drop it, or pair = 'coteaching'"):
        configured(method__pair="coteaching", method__penalty="har")
    with pytest.raises(InputError, match="pair = 'dividemix' has base losses of its own: drop base = 'gce'"):
        configured(method__pair="dividemix", method__base="gce", method__dividemix={"warmup_epochs": 1})
    with pytest.raises(InputError, match="penalty = 'jacobian' is for one network: drop it, or pair = 'dividemix'"):
        configured(method__pair="dividemix", method__penalty="jacobian", method__dividemix={"warmup_epochs": 1})
    with pytest.raises(InputError, match=r"dividemix.warmup_epochs = 10 leaves none of optim.epochs = 2: lower it"):
        configured(method__pair="dividemix")
    with pytest.raises(InputError, match=r"coteaching_plus.initial_epochs = 20 leaves none of optim.epochs = 2: lower"):
        configured(method__pair="coteaching+")
    with pytest.raises(InputError, match=r"method.coteaching.forget_rate = 1"):
        configured(method__coteaching={"forget_rate": 1.0})
    trained(configured(run__max_steps=2), world)
    with pytest.raises(InputError, match=r"method.pair \(none there, decoupling here\)"):
        trained(configured(run__resume="auto", method__pair="decoupling"), world)


def test_settings_reach_the_choice_and_order_and_weights_stay(configured: Configured, world: World) -> None:
    config = configured(
        optim__epochs=30,
        method__pair="coteaching+",
        method__coteaching_plus={"forget_rate": 0.3, "ramp_epochs": 4, "initial_epochs": 7},
    )
    inputs, alone = Inputs.open(config, 1), Inputs.open(configured(), 1)
    training = Training(config, inputs, world)
    assert isinstance(training.objective, PairObjective)
    choice = training.objective._choice
    assert (choice._coteaching._rate, choice._coteaching._ramp_epochs, choice._initial_epochs) == (0.3, 4, 7)
    training.close()
    assert inputs.plan.batch(1, 3).tolist() == alone.plan.batch(1, 3).tolist()
    assert torch.equal(inputs.module.network1.conv1.weight, alone.module.conv1.weight)
    assert _bank_bytes(config, inputs, world) == 2 * 120 * 3 * 4 == 2 * _bank_bytes(configured(), alone, world)
