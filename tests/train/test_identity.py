"""What makes two attempts one run: each difference is named, and the run refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import trained

from pipeline.config import Config
from pipeline.train.dist import World
from pipeline.train.identity import refuse_difference
from shards.build import build
from shards.errors import InputError
from shards.readers import find

Configured = Callable[..., Config]


def test_a_begun_run_is_never_overwritten_or_mixed(
    configured: Configured, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    training = trained(configured(optim__epochs=1), world)
    with pytest.raises(InputError, match="already holds a run at step 5: go on with --resume auto"):
        trained(configured(optim__epochs=1), world)
    for change, words in (
        ({"optim__lr": 0.1}, r"optim.lr \(0.05 there, 0.1 here\)"),
        ({"data__micro_batch": 4}, r"data.micro_batch \(6 there, 4 here\)"),
        ({"data__lanes": 2}, r"data.lanes \(4 there, 2 here\)"),
        ({"run__seed": 1}, r"run.seed \(0 there, 1 here\)"),
        ({"data__subset": 0.9}, r"data.subset and data.relabel \(fingerprint\)"),
        ({"method__aux": "none"}, r"method.aux \(alasca there, none here\)"),
        ({"data__train": training.config.eval.sets["test"].data}, r"data.train \(fingerprint\)"),
    ):
        with pytest.raises(InputError, match=words):
            trained(configured(**{"optim__epochs": 1, "run__resume": "auto"} | change), world)
    assert trained(configured(optim__epochs=1, run__resume="auto", data__workers=1), world).start == 5
    # Nor does it matter what another method would go by; that is said.
    capsys.readouterr()
    idle = {"gce": {"q": 0.5}, "har": {"class_errors": ["nowhere.json"]}}
    assert (
        trained(
            configured(optim__epochs=1, run__resume="auto", **{f"method__{k}": v for k, v in idle.items()}), world
        ).start
        == 5
    )
    assert (
        "method.gce.q = 0.5, method.har.class_errors = ['nowhere.json']: without effect in a method of base = 'ce',"
        " aux = 'alasca', pair = 'none', penalty = 'none'\n"
    ) in capsys.readouterr().err


def test_a_begun_run_is_refused_another_class_list(
    configured: Configured, world: World, raw: Path, tmp_path: Path
) -> None:
    shutil.copytree(raw, tmp_path / "raw")
    (tmp_path / "raw" / "class-1").rename(tmp_path / "raw" / "other")
    other = build(find("imagefolder")(tmp_path / "raw", None), tmp_path / "other", workers=1)
    changes = {"run__max_steps": 3, "data__train": str(other.root), "eval__test": {"data": str(other.root)}}
    trained(configured(run__max_steps=3), world)
    with pytest.raises(InputError, match=r"classes \(only there: class-1; only here: other\)") as refused:
        trained(configured(run__resume="auto", **changes), world)
    assert "data.train (fingerprint)" in str(refused.value)
    manifest = json.loads((other.root / "manifest.json").read_text())
    manifest["classes"] = ["class-0", "class-2", "class-1"]
    (other.root / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"classes \(the same names in another order\)"):
        trained(configured(run__resume="auto", **changes), world)


def test_a_checkpoint_from_before_a_key_existed_is_of_the_same_run(configured: Configured, world: World) -> None:
    now = trained(configured(optim__epochs=1), world).identity
    then = {key: value for key, value in now.items() if not key.startswith("method.har")}
    refuse_difference({k: v for k, v in then.items() if k != "method.penalty"}, now, "there")
    with pytest.raises(InputError, match=r"method.penalty \(none there, har here\)"):
        refuse_difference(
            {k: v for k, v in then.items() if k != "method.penalty"}, now | {"method.penalty": "har"}, "x"
        )
