"""A comparison from its file to its table, with real launches; finished runs are reused, broken ones named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.record.track import read_metrics
from pipeline.report import compare
from shards.manifest import Manifest

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def comparison(photos: Manifest, clean_photos: Manifest, tmp_path: Path) -> Callable[[str], str]:
    (tmp_path / "base.toml").write_text(
        f"""
        data = {{ train = "{photos.root}", lanes = 2, micro_batch = 12, crop = 16, workers = 0 }}
        model = {{ name = "resnet20" }}
        optim = {{ epochs = 1, lr = 0.05 }}
        track = {{ every = 5, wandb = "disabled" }}
        eval = {{ test = {{ data = "{clean_photos.root}" }} }}
        """
    )

    def write(methods: str) -> str:
        file = tmp_path / "compare.toml"
        file.write_text(f'config = "{tmp_path}/base.toml"\ndir = "{tmp_path}/runs"\nranks = 2\n{methods}')
        return str(file)

    return write


def test_compare_trains_reuses_and_names_what_broke(
    comparison: Callable[[str], str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ce, har = '[methods.ce]\nmethod = { aux = "none" }\n', '[methods.har]\nmethod = { aux = "none", penalty = "har" }\n'
    file = comparison(f'baseline = "ce"\nreference = "har"\ntarget = 0.01\n{ce}[methods.alasca]\n{har}')
    assert main(["compare", file]) == 0
    first = capfd.readouterr().out
    assert first.index("== har-seed0: training") < first.index("== ce-seed0: training")
    table = [line for line in first.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table[2:]] == ["ce", "alasca", "har"]
    folder = tmp_path / "runs"
    runs = {name: folder / f"{name}-seed0" for name in ("ce", "alasca", "har")}
    document = json.loads((folder / "comparison.json").read_text())
    for method, line in zip(document["methods"], table[2:], strict=True):
        summary = json.loads((runs[method["name"]] / "summary.json").read_text())
        assert summary["world"] == 2
        assert f"{100 * summary['sets']['test']['main/top1']:.2f}" in line
        (run,) = method["runs"]
        assert run["last"]["test/main"] == summary["sets"]["test"]["main/top1"]
    assert len((folder / "comparison.csv").read_text().splitlines()) == 4
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")
    # Same batches, same weights: the first window's loss of the main head is that of the same network.
    windows = {name: read_metrics(run)[0] for name, run in runs.items()}
    assert windows["ce"]["samples"] == windows["har"]["samples"] == windows["alasca"]["samples"]
    assert windows["ce"]["loss/base"] == pytest.approx(windows["har"]["loss/base"], abs=0.2)
    # The others follow the reference as they go, and all are one group.
    for name in ("ce", "alasca"):
        assert all("vs_reference/images_per_s" in r for r in read_metrics(runs[name]) if r["kind"] == "train")
        assert 'group = "compare"' in (runs[name] / "config.toml").read_text()
    assert "vs_reference/images_per_s" not in windows["har"]

    assert main(["compare", file]) == 0
    second = capfd.readouterr().out
    assert second.count("finished before, reused") == 3
    assert [line for line in second.splitlines() if line.startswith("|")] == table

    file = comparison(f'{ce}[methods.wrong]\nmodel = {{ pretrained = "/nowhere.pt" }}\n')
    assert main(["compare", file]) == 1
    third = capfd.readouterr()
    assert "failed: wrong-seed0" in third.err
    assert "| ce " in third.out
    before = (runs["ce"] / "config.toml").read_text()
    assert main(["compare", comparison(f"{ce}optim = {{ lr = 0.2 }}\n")]) == 2
    assert "optim.lr (0.05 there, 0.2 here)" in capfd.readouterr().err
    assert (runs["ce"] / "config.toml").read_text() == before
    (runs["ce"] / "summary.json").write_text("{")
    assert main(["compare", comparison(ce)]) == 2
    assert "summary.json cannot be read" in capfd.readouterr().err


def test_equal_time_stretches_the_whole_schedule(comparison: Callable[[str], str], tmp_path: Path) -> None:
    settings = 'optim = { epochs = 8, warmup_epochs = 1, schedule = "multistep", milestones = [4, 6] }'
    file = comparison(
        'reference = "har"\nequal_time = true\n[methods.har]\nmethod = { penalty = "har" }\n'
        f'[methods.ce]\n{settings}\nmethod = {{ aux = "none" }}\n[methods.alasca]\n{settings}\n'
        "method = { alasca = { warmup_epochs = 3 } }\n"
    )
    plan = {m: compare._plan(compare._load(file), file, m, 0) for m in ("har", "ce", "alasca")}
    for method, seconds in (("har", 100.0), ("ce", 40.0), ("alasca", 90.0)):
        plan[method].config.folder.mkdir(parents=True)
        (plan[method].config.folder / "summary.json").write_text(json.dumps({"train_seconds": seconds}))
    longer = compare._stretched(compare._load(file), file, plan["ce"])
    assert longer is not None
    assert longer.method == "ce, equal time"
    assert longer.config.run.name == "ce-equal-time-20-epochs-seed0"
    optim = longer.config.optim
    assert (optim.epochs, optim.warmup_epochs, optim.milestones) == (20, 2.5, (10.0, 15.0))
    assert longer.config.method == plan["ce"].config.method
    longer = compare._stretched(compare._load(file), file, plan["alasca"])
    assert longer is not None
    assert longer.config.optim.epochs == 9
    assert longer.config.alasca_warmup_epochs == pytest.approx(3 * 9 / 8)
    (plan["alasca"].config.folder / "summary.json").write_text(json.dumps({"train_seconds": 99.0}))
    assert compare._stretched(compare._load(file), file, plan["alasca"]) is None


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ("", "'methods' is missing"),
        ("seed = [1]\n[methods.ce]\n", "unknown key 'seed'; did you mean 'seeds'?"),
        ("[methods.ce]\noptim = { learning_rate = 3 }\n", "method 'ce' over"),
        ("[methods.ce]\nrank\n", "not valid TOML"),
        ('reference = "har"\n[methods.ce]\n', "reference 'har' is none of the methods: ce"),
        ("equal_time = true\n[methods.ce]\n", "equal_time needs a reference"),
        ("seeds = [1, 1]\n[methods.ce]\n", "seeds [1, 1] name one twice"),
    ],
)
def test_mistakes_in_the_file_are_named(
    comparison: Callable[[str], str], methods: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", comparison(methods)]) == 2
    assert words in capsys.readouterr().err
