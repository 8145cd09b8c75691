"""Steps that are not finite, in whole runs: nothing changes, the record names them, too many end the run."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from runs import trained
from safetensors.torch import load_file

from pipeline import cli
from pipeline.config import Config
from pipeline.record.metrics import timeless
from pipeline.record.track import read_metrics
from pipeline.train.dist import World
from pipeline.train.inputs import Inputs
from pipeline.train.loop import Training
from shards.errors import InputError

Configured = Callable[..., Config]
LANES = 4


def poisoned(config: Config, world: World, places: dict[int, list[int]]) -> Training:
    """A run whose network gets NaN pixels in these lanes (global steps from 0 -> lanes), as from a broken GPU."""
    training = Training(config, Inputs.open(config, 1), world)
    seen = training.start * LANES

    def spoil(_module: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        nonlocal seen
        if not training.engine.module.training:
            return None
        step, lane = divmod(seen, LANES)
        seen += 1
        return (args[0] * float("nan"),) if lane in places.get(step, []) else None

    training.engine.module.register_forward_pre_hook(spoil)
    return training


def run(config: Config, world: World, places: dict[int, list[int]]) -> Training:
    training = poisoned(config, world, places)
    try:
        training.run()
    finally:
        training.close()
    return training


def state(training: Training) -> dict[str, torch.Tensor]:
    """Everything that a step changes: weights, BatchNorm, momentum, bank."""
    momenta = training.engine.optimizer.state_dict()["state"].items()
    return (
        {name: tensor.clone() for name, tensor in training.engine.module.state_dict().items()}
        | {f"momentum {i}": one["momentum_buffer"].clone() for i, one in momenta}
        | {"bank": training.objective.banks["alasca"].rows.clone()}
    )


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def records(training: Training) -> list[dict[str, Any]]:
    return [timeless(r) for r in read_metrics(training.config.folder)]


@pytest.mark.parametrize("steps", [0, 3])
def test_after_such_a_step_everything_equals_what_was_before(configured: Configured, world: World, steps: int) -> None:
    changes: dict[str, Any] = {"optim__epochs": 1, "engine__bank_dtype": "float16"}
    training = poisoned(configured(run__max_steps=steps + 1, **changes), world, {steps: [1, 3]})
    before: dict[str, torch.Tensor] = {}
    settled = training.objective.settle

    def settle(skipped: torch.Tensor) -> None:
        settled(skipped)
        if training.engine.optimizer.found_inf == 0:
            before.update(state(training))

    if steps:
        training.objective.settle = settle  # type: ignore[method-assign]
    else:
        before = state(training)
    training.run()
    assert same(before, state(training))
    assert all(tensor.isfinite().all() for tensor in before.values())
    assert (before["bn1.num_batches_tracked"] == steps) and bool(before["bank"].any()) == (steps > 0)
    (record,) = (r for r in records(training) if r["kind"] == "nonfinite")
    ids = training.plan.batch(0, steps).tolist()
    assert record == {
        **{"kind": "nonfinite", "step": steps + 1, "epoch": (steps + 1) / 5, "in_a_row": 1},
        **{"loss_lanes": [1, 3], "statistics": True, "gradient": True, "ids": ids},
    }
    # The window that held it speaks of its other steps, if any.
    last = [r for r in records(training) if r["kind"] == "train"][-1]
    assert (last["loss"] is None) == (steps == 0)
    assert last["valid"] == (24 if steps else 0)
    # And the run goes on.
    on = trained(configured(run__resume="auto", **changes), world)
    assert on.start == steps + 1
    assert all(tensor.isfinite().all() for tensor in state(on).values())
    assert not same(before, state(on))


def test_a_run_with_such_steps_is_resumed_bit_for_bit(configured: Configured, world: World) -> None:
    changes = {"checkpoint__every_steps": 7, "optim__epochs": 3, "track__every": 3, "track__norms": 5, "eval__every": 3}
    places = {4: [0], 6: [1], 7: [0, 1, 2, 3], 9: [3], 13: [2]}
    straight = run(configured(run__name="straight", **changes), world, places)
    config = configured(run__name="cut", **changes)
    cut, save = poisoned(config, world, places), Training._save

    def dies(done: int) -> None:
        save(cut, done)
        if done == 7:
            cut.checkpoints.finish()
            raise KeyboardInterrupt

    cut._save = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    cut.close()
    resumed = run(configured(run__name="cut", run__resume="auto", **changes), world, places)
    assert resumed.start == 7
    assert same(state(straight), state(resumed))
    assert records(straight) == records(resumed)
    found = [(r["step"], r["in_a_row"], r["loss_lanes"]) for r in records(straight) if r["kind"] == "nonfinite"]
    assert found == [(5, 1, [0]), (7, 1, [1]), (8, 2, [0, 1, 2, 3]), (10, 1, [3]), (14, 1, [2])]
    steps = [r["step"] for r in records(straight)]
    assert steps == sorted(steps)
    assert '"nonfinite_steps": 5' in (straight.config.folder / "summary.json").read_text()


def test_so_many_in_a_row_end_the_run_and_leave_a_sound_checkpoint(configured: Configured, world: World) -> None:
    changes = {"optim__epochs": 4, "checkpoint__every_steps": 2, "track__every": 1}
    places = {step: [0] for step in (1, 2, 4, 5, 6, 7, 8)}
    with pytest.raises(
        InputError, match=r"are not finite in each of steps 5 to 7 \(optim.max_nonfinite_steps = 3\)"
    ) as e:
        run(configured(**changes), world, places)
    message = str(e.value)
    config = configured(**changes)
    assert str(config.folder / "metrics.jsonl") in message
    assert "a lower optim.lr (now 0.05)" in message and "\n" not in message
    found = [(r["step"], r["in_a_row"]) for r in read_metrics(config.folder) if r["kind"] == "nonfinite"]
    assert found == [(2, 1), (3, 2), (5, 1), (6, 2), (7, 3)]
    assert not (config.folder / "summary.json").exists()
    # The count is part of the checkpoint, of step 6: two in a row, and a third ends it again.
    with pytest.raises(InputError, match="each of steps 5 to 7"):
        run(configured(run__resume="auto", **changes), world, places)
    # A larger limit is no other run, and what was saved is sound: from there on it trains.
    on = run(configured(run__resume="auto", optim__max_nonfinite_steps=9, **changes), world, {})
    assert on.start == 6
    assert all(tensor.isfinite().all() for tensor in state(on).values())


def test_one_may_be_too_many(configured: Configured, world: World) -> None:
    with pytest.raises(InputError, match=r"are not finite in step 2 \(optim.max_nonfinite_steps = 1\)"):
        run(configured(optim__max_nonfinite_steps=1), world, {1: [2]})


@pytest.mark.parametrize("lr", [1e5, 1e30])
def test_a_learning_rate_out_of_this_world_ends_with_one_line(
    configured: Configured,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
    capsys: pytest.CaptureFixture[str],
    lr: float,
) -> None:
    from pipeline.train import dist

    monkeypatch.setattr(dist, "start", lambda timeout, met: world)
    monkeypatch.setattr(dist, "stop", lambda: None)
    config = configured(optim__lr=lr, optim__epochs=4, optim__schedule="constant", checkpoint__every_steps=1)
    file = tmp_path / "wild.toml"
    file.write_text(config.to_toml())
    assert cli.main(["train", str(file)]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert (
        error.strip()
        .splitlines()[-1]
        .startswith("alasca: loss, gradient or BatchNorm statistics are not finite in each of steps ")
    )
    assert f"optim.lr (now {lr:g})" in error
    assert "ids" not in error
    found = [r for r in read_metrics(config.folder) if r["kind"] == "nonfinite"]
    assert [r["in_a_row"] for r in found][-3:] == [1, 2, 3]
    assert all(len(r["ids"]) == 24 for r in found)
    # Whatever is left of the network, nothing that is not finite was ever saved.
    saved = sorted(config.folder.glob("checkpoints/step-*/model.safetensors"))
    assert saved
    for file in saved:
        assert all(tensor.isfinite().all() for tensor in load_file(file).values()), file
