"""A comparison from its file to its table, with real launches; finished runs are reused, broken ones named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.record.track import read_metrics
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
    file = comparison('[methods.ce]\nmethod = { aux = "none" }\n[methods.alasca]\n')
    assert main(["compare", file]) == 0
    first = capfd.readouterr().out
    table = [line for line in first.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table[2:]] == ["ce", "alasca"]
    runs = {name: tmp_path / "runs" / f"{name}-seed0" for name in ("ce", "alasca")}
    for line in table[2:]:
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        summary = json.loads((runs[cells[0]] / "summary.json").read_text())
        assert summary["world"] == 2
        assert cells[1] == f"{100 * summary['sets']['test']['main/top1']:.2f}"
        averaged = summary["sets"]["test"].get("averaged/top1")
        assert cells[2] == ("" if averaged is None else f"{100 * averaged:.2f}")
        assert cells[3] == f"{summary['images_per_s']:.0f}"
    # Same batches: before the first update the loss of the main head is the same.
    base = [read_metrics(run)[0] for run in runs.values()]
    assert base[0]["samples"] == base[1]["samples"]

    assert main(["compare", file]) == 0
    second = capfd.readouterr().out
    assert second.count("finished before, reused") == 2
    assert [line for line in second.splitlines() if line.startswith("|")] == table

    shutil.rmtree(runs["alasca"])
    file = comparison(
        '[methods.ce]\nmethod = { aux = "none" }\n[methods.wrong]\nmodel = { pretrained = "/nowhere.pt" }\n'
    )
    assert main(["compare", file]) == 1
    third = capfd.readouterr()
    assert "failed: wrong-seed0" in third.err
    assert "| ce " in third.out

    file = comparison('[methods.ce]\nmethod = { aux = "none" }\noptim = { lr = 0.2 }\n')
    assert main(["compare", file]) == 2
    assert "optim.lr (0.05 there, 0.2 here)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ("", "'methods' is missing"),
        ("seed = [1]\n[methods.ce]\n", "unknown key 'seed'; did you mean 'seeds'?"),
        ("[methods.ce]\noptim = { learning_rate = 3 }\n", "method 'ce' over"),
        ("[methods.ce]\nrank\n", "not valid TOML"),
    ],
)
def test_mistakes_in_the_file_are_named(
    comparison: Callable[[str], str], methods: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", comparison(methods)]) == 2
    assert words in capsys.readouterr().err
