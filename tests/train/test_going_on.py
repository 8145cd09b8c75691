"""A run that goes on from its checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from shards.errors import InputError

Configured = Callable[..., Config]


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


def test_nothing_is_read_for_steps_after_max_steps(configured: Configured, world: World) -> None:
    config = configured(run__max_steps=3)
    training = Training(config, Inputs.open(config, 1), world)
    try:
        assert len(list(training.feed)) == 3 * config.data.lanes
    finally:
        training.close()
