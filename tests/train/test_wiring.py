"""What the configuration says reaches the part that does it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipeline.config import Config
from pipeline.method.alasca import AdaptiveSmoothing, Alasca, Trust
from pipeline.method.bank import SampleBank
from pipeline.method.elr import EarlyLearning
from pipeline.method.losses import base_loss
from pipeline.method.outputs import Outputs
from pipeline.method.supervision import SelfDistillation, Supervision
from pipeline.record.track import read_metrics
from pipeline.train.dist import World
from pipeline.train.inputs import Inputs
from pipeline.train.loop import Training
from shards.errors import InputError

Configured = Callable[..., Config]


def test_method_settings_reach_the_losses(configured: Configured, world: World) -> None:
    settings = {"aux_weight": 0.5, "momentum": 0.6, "temperature": 2.0, "warmup_epochs": 7}
    config = configured(method__base="gce", method__gce={"q": 0.3}, method__alasca=settings)
    training = Training(config, Inputs.open(config, 1), world)
    aux, trust = training.objective.aux, training.objective.trust
    assert isinstance(aux, Alasca) and aux.aux_weight == 0.5
    assert isinstance(trust, Trust) and trust.smoothing == AdaptiveSmoothing(
        momentum=0.6, temperature=2.0, warmup_epochs=7
    )
    logits, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    p = torch.softmax(logits, 1)[range(4), target]
    outputs = Outputs(logits, (), target, torch.arange(4), torch.ones(4, dtype=torch.bool), 0)
    torch.testing.assert_close(training.objective.base(outputs), (1 - p**0.3) / 0.3)
    bank = training.objective.banks["alasca"]
    assert (bank.start, bank.stop, tuple(bank.rows.shape)) == (0, 120, (120, 3))


@pytest.mark.parametrize(
    ("base", "options", "made"),
    [
        ("nce_rce", {"alpha": 2.0, "beta": 0.5}, lambda _: base_loss("nce_rce", {"alpha": 2.0, "beta": 0.5})),
        ("elr", {"beta": 0.5, "weight": 2.0}, lambda bank: EarlyLearning(bank, 0.5, 2.0)),
    ],
)
def test_settings_of_a_base_loss_reach_it(
    configured: Configured, world: World, base: str, options: dict, made: Callable
) -> None:
    config = configured(method__base=base, **{f"method__{base}": options})
    found = Training(config, Inputs.open(config, 1), world).objective.base
    outputs = some_outputs()
    torch.testing.assert_close(found(outputs), made(SampleBank(0, 120, 3))(outputs))


@pytest.mark.parametrize(
    ("aux", "options", "made"),
    [
        ("deep", {"aux_weight": 0.7}, Supervision(0.7)),
        ("smoothing", {"aux_weight": 0.7, "epsilon": 0.4}, Supervision(0.7, 0.4)),
        (
            "distillation",
            {"aux_weight": 0.7, "alpha": 0.6, "temperature": 2.0},
            SelfDistillation(0.7, 0.6, 2.0),
        ),
    ],
)
def test_settings_of_a_loss_of_heads_reach_it(
    configured: Configured, world: World, aux: str, options: dict, made: Supervision | SelfDistillation
) -> None:
    config = configured(method__aux=aux, **{f"method__{aux}": options})
    found = Training(config, Inputs.open(config, 1), world).objective.aux
    assert found is not None and found.aux_weight == 0.7
    outputs = some_outputs()
    torch.testing.assert_close(found(outputs), made(outputs))


def some_outputs() -> Outputs:
    main, *heads = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    every = torch.ones(5, dtype=torch.bool)
    return Outputs.of(main, heads, torch.tensor([0, 1, 2, 0, 2]), torch.arange(5), every, 1)


def test_engine_and_data_settings_reach_their_parts(configured: Configured, world: World) -> None:
    config = configured(
        engine__bank_dtype="float16",
        engine__precision="bfloat16",
        engine__channels_last=False,
        data__flip=False,
        data__shuffle_shards=3,
        data__max_pixels=4321,
        data__augment="pad_crop",
        optim__momentum=0.8,
        optim__nesterov=True,
        optim__weight_decay=0.01,
        optim__clip=3.0,
    )
    training = Training(config, Inputs.open(config, 1), world)
    assert training.objective.banks["alasca"].rows.dtype == torch.float16
    assert training.plan.shuffle_shards == 3
    groups = training.engine.optimizer.param_groups
    assert [(g["momentum"], g["nesterov"], g["weight_decay"]) for g in groups] == [(0.8, True, 0.01), (0.8, True, 0.0)]
    assert training.engine._deepspeed.gradient_clipping() == 3.0
    assert training.engine.forward(next(training.feed).images)[0].dtype == torch.bfloat16
    assert training.engine.module.conv1.weight.is_contiguous()


def test_clipping_is_off_unless_asked_for(configured: Configured, world: World) -> None:
    training = Training(configured(), Inputs.open(configured(), 1), world)
    assert training.engine._deepspeed.gradient_clipping() == 0.0


def test_flip_and_the_pixel_limit_reach_the_loader(configured: Configured, world: World) -> None:
    def first(**changes: object) -> torch.Tensor:
        config = configured(data__augment="none", **changes)
        return next(Training(config, Inputs.open(config, 1), world).feed).images

    still, flipped = first(data__flip=False), first(data__flip=True)
    mirrored = [not torch.equal(a, b) for a, b in zip(still, flipped, strict=True)]
    assert any(mirrored)
    assert not all(mirrored)
    limited = configured(data__max_pixels=100)
    assert not next(Training(limited, Inputs.open(limited, 1), world).feed).valid.any()


def test_seeds_decide_weights_and_order(configured: Configured) -> None:
    a, b, c = (Inputs.open(configured(run__seed=seed), 1) for seed in (0, 0, 1))
    assert torch.equal(a.module.conv1.weight, b.module.conv1.weight)
    assert not torch.equal(a.module.conv1.weight, c.module.conv1.weight)
    assert a.plan.batch(0, 0).tolist() == b.plan.batch(0, 0).tolist() != c.plan.batch(0, 0).tolist()


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_rate_of_each_step_is_the_schedules(configured: Configured, world: World, schedule: str) -> None:
    config = configured(
        optim__warmup_epochs=0.4, optim__schedule=schedule, optim__lr=0.08, track__every=1, run__name=schedule
    )
    Training(config, Inputs.open(config, 1), world).run()
    rates = [r["lr"] for r in read_metrics(config.folder) if r["kind"] == "train"]
    flat = [0.04, 0.08] + [0.08] * 8
    wave = [0.04, 0.08] + [0.04 * (1 + np.cos(np.pi * k / 8)) for k in range(8)]
    assert rates == pytest.approx(wave if schedule == "cosine" else flat)


def test_evaluation_comes_every_so_many_epochs_and_at_the_end(configured: Configured, world: World) -> None:
    config = configured(optim__epochs=5, eval__every=2)
    Training(config, Inputs.open(config, 1), world).run()
    assert [r["step"] for r in read_metrics(config.folder) if r["kind"] == "eval"] == [10, 20, 25]


def test_the_bank_is_a_homes(configured: Configured) -> None:
    plan = Inputs.open(configured(), 1).plan
    bank = SampleBank(*plan.home(1, 2), 3)
    bank.update(torch.from_numpy(plan.lane_batch(0, 0, 2)), torch.ones(6, 3), 0.5)
    with pytest.raises(ValueError, match="outside this bank's range"):
        bank.update(torch.from_numpy(plan.lane_batch(0, 0, 1)), torch.ones(6, 3), 0.5)


@pytest.mark.parametrize(
    ("model", "crop", "words"),
    [
        (
            {"name": "resnet50"},
            16,
            '16: the last stage of resnet50 is left one pixel; take 17 or more, or model.stem = "small"',
        ),
        ({"name": "resnet18", "stem": "small"}, 4, "4: the last stage of resnet18 is left one pixel; take 5 or more"),
    ],
)
def test_crops_that_are_too_small_are_refused(configured: Configured, model: dict, crop: int, words: str) -> None:
    config = configured(data__crop=crop, **{f"model__{key}": value for key, value in model.items()})
    with pytest.raises(InputError) as caught:
        Inputs.open(config, 1)
    assert str(caught.value) == f"data.crop = {words}"
