"""Every method, whole runs: in two processes of each launcher as in one, with accumulation, cut and resumed."""

import subprocess
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import BIN, free_port
from safetensors.torch import load_file

from pipeline import configfile
from pipeline.config import Config
from pipeline.record.metrics import timeless
from pipeline.record.track import read_metrics
from pipeline.train import packed
from pipeline.train.checkpoint import own_name
from pipeline.train.dist import World
from pipeline.train.loop import Training
from shards.manifest import Manifest
from tests.conftest import unlaunched
from tests.train.runs import tiny, trained

ROOT = Path(__file__).parents[2]
LAST = "checkpoints/step-000000010"

# Each base loss, each loss of the heads and each pair.
METHODS: dict[str, dict[str, Any]] = {
    "nce_rce-none": {"method__base": "nce_rce", "method__aux": "none"},
    "sce-alasca": {"method__base": "sce"},
    "ls-current": {"method__base": "ls", "method__alasca": {"confidence": "current", "warmup_epochs": 0}},
    "forward-alasca": {"method__base": "forward", "method__forward": {"matrix": "known"}},
    "elr-alasca": {"method__base": "elr"},
    "elr-smoothing": {"method__base": "elr", "method__aux": "smoothing"},
    "adaptive-averaged": {"method__base": "adaptive", "method__alasca": {"confidence": "averaged"}},
    "ce-deep": {"method__aux": "deep"},
    "gce-distillation": {"method__base": "gce", "method__aux": "distillation"},
    "coteaching-alasca": {"method__pair": "coteaching", "method__coteaching": {"ramp_epochs": 1}},
    "decoupling-alasca": {"method__pair": "decoupling", "method__decoupling": {"warmup_epochs": 1}},
    "elr_plus-alasca": {"method__pair": "elr+", "method__elr_plus": {"ramp_epochs": 2}, "optim__ema": 0.9},
    "elr_plus-none": {"method__pair": "elr+", "method__aux": "none", "optim__ema": 0.9},
    "dividemix-alasca": {"method__pair": "dividemix", "method__dividemix": {"warmup_epochs": 1, "ramp_epochs": 1}},
    "dividemix-none": {
        "method__pair": "dividemix",
        "method__aux": "none",
        "method__dividemix": {"warmup_epochs": 1, "confidence_penalty": 1.0, "alpha": 0.5},
    },
    "coteaching_plus-elr": {
        "method__pair": "coteaching+",
        "method__base": "elr",
        "method__aux": "none",
        "method__coteaching_plus": {"ramp_epochs": 1, "initial_epochs": 1},
    },
}
# What they keep per sample.
BANKS = {
    "sce-alasca": {"alasca"},
    "forward-alasca": {"alasca"},
    "elr-alasca": {"alasca", "elr"},
    "adaptive-averaged": {"alasca"},
    "elr-smoothing": {"elr"},
    "coteaching-alasca": {"network1/alasca", "network2/alasca"},
    "decoupling-alasca": {"network1/alasca", "network2/alasca"},
    "elr_plus-alasca": {"network1/alasca", "network1/elr", "network2/alasca", "network2/elr"},
    "elr_plus-none": {"network1/elr", "network2/elr"},
    "dividemix-alasca": {f"network{n}/{bank}" for n in (1, 2) for bank in ("alasca", "loss", "clean")},
    "dividemix-none": {f"network{n}/{bank}" for n in (1, 2) for bank in ("loss", "clean")},
    "coteaching_plus-elr": {"network1/elr", "network2/elr"},
}

# Every method in both, since what 16 bits round away hides small differences.
PRECISIONS = {"torchrun": "float32", "deepspeed": "bfloat16"}

# Several one after another in this process, one of two: starting a process takes longer than its runs.
IN_TURN = """
import sys
from pipeline import configfile
from pipeline.train import dist
from pipeline.train.inputs import Inputs
from pipeline.train.loop import Training

world = dist.start(60)
for file in sys.argv[1:]:
    if file.startswith("--local_rank"):  # of the deepspeed launcher
        continue
    config = configfile.load(file)
    training = Training(config, Inputs.open(config, 2), world)
    try:
        training.run()
    finally:
        training.close()
dist.stop()
"""

Configured = Callable[..., Config]


@pytest.fixture(scope="module")
def configured(photos: Manifest, clean_photos: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Configured:
    """Ten steps; the learning rate is small because rounding alone drives equal runs apart."""
    folder = tmp_path_factory.mktemp("methods")
    return partial(tiny, photos, clean_photos, folder, optim__lr=1e-4, optim__schedule="constant", track__every=1)


@pytest.fixture(scope="module")
def two(configured: Configured, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Path]]:
    """The folders of a method's runs in two processes, one of each launcher."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "in_turn.py").write_text(IN_TURN)
    launchers = {
        "torchrun": [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2"],
        "deepspeed": [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", str(free_port())],
    }
    for launcher, command in launchers.items():
        files = [folder / f"{name}-{launcher}.toml" for name in METHODS]
        for file, changes in zip(files, METHODS.values(), strict=True):
            changes = changes | {"engine__precision": PRECISIONS[launcher]}
            configfile.store(file, configured(run__name=file.stem, eval__every=2, **changes))
        ended = subprocess.run(
            [*command, str(folder / "in_turn.py"), *map(str, files)],
            env={**unlaunched(), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert ended.returncode == 0, (ended.stdout + ended.stderr)[-3000:]
    return lambda name: [configured(run__name=f"{name}-{launcher}").folder for launcher in launchers]


@pytest.fixture(scope="module")
def one(configured: Configured, world: World) -> Callable[[str, str], Training]:
    """A method's run in this process and in a precision, from start to end."""

    @cache
    def run(name: str, precision: str) -> Training:
        changes = METHODS[name] | {"engine__precision": precision}
        return trained(configured(run__name=f"{name}-{precision}", eval__every=2, **changes), world)

    return run


def rows(folder: Path, world: int) -> dict[str, torch.Tensor]:
    """Of each bank, of each network, over all ranks."""
    states = [dict(banks_of(packed.read(folder / LAST / own_name(rank)))) for rank in range(world)]
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def banks_of(state: dict[str, Any], before: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    for name, inner in state.items():
        if "rows" in inner:
            yield before + name, inner["rows"]
        else:
            yield from banks_of(inner, f"{before}{name}/")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_train_as_one_does(
    name: str, one: Callable[[str, str], Training], two: Callable[[str], list[Path]]
) -> None:
    for folder, precision in zip(two(name), PRECISIONS.values(), strict=True):
        train_alike(name, precision, one(name, precision).config.folder, folder)


def train_alike(name: str, precision: str, *folders: Path) -> None:
    """In one process and in two."""
    a, b = ([r for r in read_metrics(folder) if r["kind"] == "train"] for folder in folders)
    assert [r["step"] for r in a] == [r["step"] for r in b] == list(range(1, 11))
    means = ("loss", "confidence", "top1", "selected", "agreement", "labelled", "evidence/")
    figures = [key for key in a[-1] if key.startswith(means)]
    assert len(figures) >= 7
    # 16 bits round by 2^-8, one more time where gradients are summed over processes.
    within = 1e-3 if precision == "float32" else 2e-2
    for key in figures:  # none: no wrong label in that step, or nothing divided yet
        values = [[-1.0 if r.get(key) is None else r[key] for r in records] for records in (a, b)]
        assert values[0] == pytest.approx(values[1], abs=within), key
    mine, theirs = rows(folders[0], 1), rows(folders[1], 2)
    assert mine.keys() == theirs.keys() == BANKS.get(name, set())
    for bank, values in mine.items():
        # Of everyone; a probability may be 0.
        assert len(values) == 120 and (bank.endswith("clean") or (values.abs().sum(dim=1) > 0).all())
        torch.testing.assert_close(theirs[bank], values, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_was_cut_ends_as_one_that_was_not(
    name: str, configured: Configured, one: Callable[[str, str], Training], world: World
) -> None:
    straight = one(name, "bfloat16")
    # Within an epoch, the second one.
    changes = METHODS[name] | {"run__name": f"{name}-cut", "engine__precision": "bfloat16"}
    changes |= {"eval__every": 2, "checkpoint__every_steps": 7}
    trained(configured(**changes, run__max_steps=7), world)
    cut = trained(configured(**changes, run__resume="auto"), world)
    assert cut.start == 7
    averages = ["ema.safetensors"] if cut.config.optim.ema else []
    for file in ("model.safetensors", *averages):
        saved = [load_file(run.config.folder / LAST / file) for run in (straight, cut)]
        assert all(torch.equal(tensor, saved[1][key]) for key, tensor in saved[0].items())
    momenta = [run.engine.optimizer.state_dict()["state"] for run in (straight, cut)]
    for index, state in momenta[0].items():
        assert torch.equal(state["momentum_buffer"], momenta[1][index]["momentum_buffer"])
    mine, theirs = rows(straight.config.folder, 1), rows(cut.config.folder, 1)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(values, theirs[bank]) for bank, values in mine.items())
    records = [
        [timeless(r) for r in read_metrics(run.config.folder) if r["kind"] == "train"] for run in (straight, cut)
    ]
    assert records[0] == records[1]
    aux = cut.config.method.aux
    weight = 0.0 if aux == "none" else getattr(cut.config.method, aux).aux_weight
    for r in records[1]:
        assert r["loss"] == pytest.approx(r["loss/base"] + weight * r.get("loss/aux", 0.0), rel=1e-5)
