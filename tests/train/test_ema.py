"""The average of the weights: its value, what it leaves alone, what sees it, how it is resumed and refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from runs import trained
from safetensors.torch import load_file

from pipeline.config import Config
from pipeline.record.metrics import timeless
from pipeline.record.track import read_metrics
from pipeline.train.checkpoint import read_index
from pipeline.train.dist import World
from pipeline.train.inputs import Inputs
from pipeline.train.loop import Training
from pipeline.train.probe import features
from pipeline.train.stored import StoredRun
from shards.errors import InputError
from shards.manifest import Manifest

Configured = Callable[..., Config]
State = dict[str, torch.Tensor]


def live(training: Training) -> State:
    return {name: tensor.clone() for name, tensor in training.engine.module.state_dict().items()}


def averaged(training: Training) -> State:
    assert training.engine.ema is not None
    return {name: tensor.clone() for name, tensor in training.engine.ema.state_dict().items()}


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def every_step(training: Training) -> list[State]:
    """The live network before the first step and after each one, filled while it trains."""
    seen, step = [live(training)], training.engine.step

    def stepping(lr: float) -> torch.Tensor:
        flags = step(lr)
        seen.append(live(training))
        return flags

    training.engine.step = stepping  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("decay", [0.3, 0.9999])
def test_it_is_the_average_that_numpy_computes(configured: Configured, world: World, decay: float) -> None:
    """A decay that counts from the third step on, and one that ten steps do not reach."""
    config = configured(optim__ema=decay)
    training = Training(config, Inputs.open(config, 1), world)
    seen = every_step(training)
    training.run()
    training.close()
    assert len(seen) == 11
    expected = {name: tensor.double().numpy() for name, tensor in seen[0].items()}
    for n, state in enumerate(seen[1:], 1):
        d = min(decay, (1 + n) / (10 + n))
        expected = {name: d * expected[name] + (1 - d) * state[name].double().numpy() for name in expected}
    found = averaged(training)
    assert found.keys() == seen[-1].keys()
    for name, tensor in found.items():
        if tensor.is_floating_point():
            np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
            assert not torch.equal(tensor, seen[-1][name]), name
        else:
            assert tensor == seen[-1][name] == 10, name


def test_training_is_the_same_and_evaluations_see_the_average(
    configured: Configured, world: World, clean_photos: Manifest
) -> None:
    changes: dict[str, Any] = {"optim__lr": 0.2, "track__norms": 4, "eval__select_by": "test"}
    without = trained(configured(run__name="without", **changes), world)
    run = trained(configured(run__name="with", optim__ema=0.999, **changes), world)
    assert same(live(without), live(run))
    lines = [[timeless(r) for r in read_metrics(t.config.folder)] for t in (without, run)]
    plain = [[r for r in records if r["kind"] != "eval"] for records in lines]
    assert plain[0] == plain[1]

    last = [[r for r in records if r["kind"] == "eval"][-1] for records in lines]
    assert last[0]["loss"] != last[1]["loss"]
    newest = run.checkpoints.paths()[-1]
    assert read_index(newest)["selected"] == last[1]["main/top1"]
    assert same(load_file(newest / "ema.safetensors"), averaged(run))
    assert same(load_file(newest / "model.safetensors"), live(run))
    assert not list(without.config.folder.glob("checkpoints/*/ema.safetensors"))
    # What reads a checkpoint takes the average; the live network in its place says what the run without it said.
    stored = StoredRun(run.config.folder)
    assert same(stored.module(torch.device("cpu")).state_dict(), averaged(run))
    assert stored.evaluate(clean_photos, world)["loss"] == last[1]["loss"]
    assert StoredRun(without.config.folder).evaluate(clean_photos, world)["loss"] == last[0]["loss"]
    rows = [
        features(StoredRun(t.config.folder).module(torch.device("cpu")), stored, clean_photos, 5)[0]["stage1"]
        for t in (without, run)
    ]
    assert not np.allclose(*rows)
    # It was not only stored: it is what evaluation asks.
    run.engine.eval()
    images = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(run.engine.forward(images)[0], stored.network(world)(images)[0])


def test_a_step_that_is_not_finite_leaves_it(configured: Configured, world: World) -> None:
    config = configured(optim__ema=0.9)
    training = Training(config, Inputs.open(config, 1), world)
    engine = training.engine
    engine.train()
    images, labels = torch.randint(0, 256, (6, 16, 16, 3), dtype=torch.uint8), torch.randint(0, 3, (6,))

    def step(factor: float) -> State:
        for lane in range(4):
            main, aux = engine.forward(images)
            loss = sum(F.cross_entropy(logits, labels) for logits in (main, *aux))
            engine.backward(loss * (factor if lane == 2 else 1.0))
        engine.step(0.1)
        engine.average_over_ranks()
        return averaged(training)

    before = step(1.0)
    for factor in (float("nan"), float("inf")):
        assert same(before, step(factor))
    after = step(1.0)
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert not any(torch.equal(before[name], after[name]) for name in before)
    training.close()


def test_a_resumed_run_ends_bit_for_bit_the_same(configured: Configured, world: World) -> None:
    changes: dict[str, Any] = {"optim__ema": 0.6, "optim__epochs": 3, "eval__every": 2, "checkpoint__every_steps": 4}
    straight = trained(configured(run__name="straight", **changes), world)
    config = configured(run__name="cut", **changes)
    cut = Training(config, Inputs.open(config, 1), world)
    save = cut.checkpoints.save

    def dies(done: int, **state: Any) -> None:
        save(done, **state)
        if done == 8:
            cut.checkpoints.finish()
            raise KeyboardInterrupt

    cut.checkpoints.save = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    cut.close()
    resumed = trained(configured(run__name="cut", run__resume="auto", **changes), world)
    assert resumed.start == 8
    assert same(averaged(straight), averaged(resumed))
    assert not same(averaged(straight), live(straight))
    records = [[timeless(r) for r in read_metrics(t.config.folder)] for t in (straight, resumed)]
    assert records[0] == records[1]
    files = [t.config.folder / "checkpoints/step-000000015/ema.safetensors" for t in (straight, resumed)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_it_is_part_of_what_a_run_is(configured: Configured, world: World) -> None:
    with_it = {"run__name": "with", "optim__ema": 0.99, "run__max_steps": 3}
    trained(configured(run__name="without", run__max_steps=3), world)
    trained(configured(**with_it), world)
    for there, here, words in (
        ("without", 0.99, r"optim.ema \(0.0 there, 0.99 here\)"),
        ("with", 0.0, r"optim.ema \(0.99 there, 0.0 here\)"),
        ("with", 0.9, r"optim.ema \(0.99 there, 0.9 here\)"),
    ):
        with pytest.raises(InputError, match=words):
            trained(configured(run__name=there, run__resume="auto", optim__ema=here), world)
    with pytest.raises(InputError, match=r"optim.ema = 1\.0"):
        configured(optim__ema=1.0)
