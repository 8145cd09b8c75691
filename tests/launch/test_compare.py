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
    comparison: Callable[[str], str], photos: Manifest, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    alasca = "[methods.alasca]\n"
    # Dear enough that the other's extra run, stretched to its seconds, is longer by epochs whatever the machine does.
    costly = '[methods.costly]\nmethod = { aux = "none", penalty = "jacobian", jacobian = { n_proj = 6 } }\n'
    costly += 'track = { wandb = "offline" }\n'  # the first run's setting is the comparison's
    file = comparison(f'reference = "costly"\nequal_time = true\ntarget = 0.01\n{alasca}{costly}')
    assert main(["compare", file]) == 0
    first = capfd.readouterr().out
    assert first.index("== costly-seed0: training") < first.index("== alasca-seed0: training")
    table = [line for line in first.splitlines() if line.startswith("|")]
    names = ["alasca", "costly", "alasca, equal time"]
    figures, labels = table[: len(table) // 2], table[len(table) // 2 :]
    assert [line.split("|")[1].strip() for line in figures[2:]] == names
    assert "memorised %" in labels[0] and [line.split("|")[1].strip() for line in labels[2:]] == names
    folder = tmp_path / "runs"
    (stretched,) = folder.glob("alasca-equal-time-*-epochs-seed0")
    runs = {"alasca": folder / "alasca-seed0", "costly": folder / "costly-seed0", "alasca, equal time": stretched}
    document = json.loads((folder / "comparison.json").read_text())
    summaries = {name: json.loads((run / "summary.json").read_text()) for name, run in runs.items()}
    for method, line in zip(document["methods"], figures[2:], strict=True):
        summary = summaries[method["name"]]
        assert summary["world"] == 2
        assert f"{100 * summary['sets']['test']['main/top1']:.2f}" in line
        (run,) = method["runs"]
        assert run["last"]["test/main"] == summary["sets"]["test"]["main/top1"]
    # As many epochs as fit into the other's seconds at its own speed.
    seconds = summaries["costly"]["train_seconds"] / summaries["alasca"]["train_seconds"]
    assert summaries["alasca, equal time"]["epochs"] == round(seconds) > 1
    assert summaries["alasca, equal time"]["samples"] == round(seconds) * summaries["alasca"]["samples"]
    assert len((folder / "comparison.csv").read_text().splitlines()) == 4
    page = (folder / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "alasca, equal time" in page
    # Same batches, same weights: the first window's loss of the main head is that of the same network.
    windows = {name: read_metrics(run)[0] for name, run in runs.items()}
    assert windows["costly"]["samples"] == windows["alasca"]["samples"]
    assert windows["costly"]["loss/base"] == pytest.approx(windows["alasca"]["loss/base"], abs=0.2)
    # The others follow the reference as they go, and all are one group.
    for name in ("alasca", "alasca, equal time"):
        assert "vs_reference/images_per_s" in windows[name]
        assert 'group = "compare"' in (runs[name] / "config.toml").read_text()
    assert "vs_reference/images_per_s" not in windows["costly"]

    # In wandb: the run and the comparison, one group.
    assert len(list(runs["costly"].glob("wandb/offline-run-*"))) == 1
    assert len(list((folder / "comparison").glob("wandb/offline-run-*/files/media/html/*.html"))) == 1

    # One run was cut off before its summary: it goes on from its checkpoint, the others are reused.
    (runs["costly"] / "summary.json").unlink()
    assert main(["compare", file]) == 0
    second = capfd.readouterr().out
    assert second.count("finished before, reused") == 2 and "== costly-seed0: training" in second
    assert [line for line in second.splitlines() if line.startswith("|")] == table
    again = json.loads((runs["costly"] / "summary.json").read_text())
    assert again == summaries["costly"]

    (folder / "wrong-seed0").write_text("in the way of a run")
    file = comparison(f"{alasca}[methods.wrong]\n")
    assert main(["compare", file]) == 1
    third = capfd.readouterr()
    assert "failed: wrong-seed0" in third.err
    assert "| alasca " in third.out
    before = (runs["alasca"] / "config.toml").read_text()
    assert main(["compare", comparison(f"{alasca}optim = {{ lr = 0.2 }}\n")]) == 2
    assert "optim.lr (0.05 there, 0.2 here)" in capfd.readouterr().err
    assert (runs["alasca"] / "config.toml").read_text() == before
    swapped = f"{alasca}eval = {{ test = {{ data = '{photos.root}' }} }}\n"
    assert main(["compare", comparison(swapped)]) == 2
    assert "evaluation sets" in capfd.readouterr().err
    (runs["alasca"] / "summary.json").write_text("{")
    assert main(["compare", comparison(alasca)]) == 2
    assert "summary.json cannot be read" in capfd.readouterr().err


def test_a_folder_that_cannot_be_made_is_named(
    comparison: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").write_text("in the way")
    assert main(["compare", comparison("[methods.ce]\n")]) == 2
    assert f"dir = '{tmp_path}/runs' cannot be written: File exists" in capsys.readouterr().err


def test_equal_time_stretches_the_whole_schedule(comparison: Callable[[str], str], tmp_path: Path) -> None:
    settings = 'optim = { epochs = 8, warmup_epochs = 1, schedule = "multistep", milestones = [4, 6] }'
    file = comparison(
        'reference = "har"\nequal_time = true\n[methods.har]\nmethod = { penalty = "har" }\n'
        f'[methods.ce]\n{settings}\nmethod = {{ aux = "none" }}\n[methods.alasca]\n{settings}\n'
        "method = { alasca = { warmup_epochs = 3 } }\n"
        f'[methods.pair]\n{settings}\nmethod = {{ pair = "dividemix", dividemix = {{ warmup_epochs = 3 }} }}\n'
    )
    plan = {m: compare._plan(compare._load(file), file, m, 0) for m in ("har", "ce", "alasca", "pair")}
    for method, seconds in (("har", 100.0), ("ce", 40.0), ("alasca", 90.0), ("pair", 50.0)):
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
    longer = compare._stretched(compare._load(file), file, plan["pair"])
    assert longer is not None
    assert (longer.config.method.dividemix.warmup_epochs, longer.config.method.dividemix.ramp_epochs) == (6, 32.0)
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
        ("seeds = 3\n[methods.ce]\n", "seeds = 3: must be a list, such as [0, 1, 2]"),
        ('[methods."elr+"]\n', "'elr+' names a method: letters, digits and, not first, '.', '_' and '-' may be in it"),
        ('select_by = "vla"\n[methods.ce]\n', "select_by 'vla' is no evaluation set of ce-seed0: test"),
    ],
)
def test_mistakes_in_the_file_are_named(
    comparison: Callable[[str], str], methods: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", comparison(methods)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('method = { base = "forward", forward = { matrix = "nowhere.csv" } }', "nowhere.csv"),
        ('model = { pretrained = "nowhere.pt" }', "nowhere.pt"),
        ("data = { lanes = 3 }", "2 processes cannot share data.lanes = 3"),
    ],
)
def test_what_cannot_be_trained_is_named_before_anything_is(
    comparison: Callable[[str], str], tmp_path: Path, change: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = comparison(f"[methods.fine]\n[methods.last]\n{change}\n")
    assert main(["compare", file]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"alasca: {file}, method 'last': ") and words in line
    assert not (tmp_path / "runs").exists()
