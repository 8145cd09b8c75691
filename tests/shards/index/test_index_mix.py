"""`alasca index` says where samples are not shuffled, and what to do."""

import os
import re
from pathlib import Path

import pytest
from indexes import alasca, pictures, sorted_tars
from server import serving

from shards.build import build
from shards.manifest import Manifest
from shards.readers import webdataset


def test_sorted_tars_are_told_with_figures_and_a_command_that_mends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = sorted_tars(tmp_path / "so rted")
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\ndog\n")
    assert alasca("index", root, "--out", root, "--classes", names) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING")]
    assert len(told) == 2
    assert re.search(
        r"of 8 lanes, .*lane 0 has other classes than the whole in 75\.0% of its samples"
        r" \(in a fair shuffle \d\d\.\d%\); 100\.0% of it are 'ant', 25\.0% of the whole",
        told[0],
    )
    command = told[1].partition(": ")[2]
    shuffled = f"{root}-shuffled"
    assert command == (f"alasca shard webdataset --root '{root}' --split train --classes {names} --out '{shuffled}'")
    webdataset_source = webdataset.read(root, "train", classes=str(names))
    build(webdataset_source, shuffled, workers=1, samples_per_shard=20)
    capsys.readouterr()
    assert alasca("inspect", shuffled) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("of 8 lanes"))
    worst, fair = (float(figure) for figure in re.findall(r"([\d.]+)%", line))
    assert worst < 1.5 * fair
    assert alasca("index", root / "part-000.tar", "--out", tmp_path / "one") == 0
    assert "WARNING" not in capsys.readouterr().out  # of one class, lanes cannot differ


def test_the_remedy_for_tars_that_lie_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sorted_tars(tmp_path / "t")
    with serving(tmp_path / "t") as server:
        arguments = ("--label-field", "label", "--split", "test", "--out", tmp_path / "index")
        assert alasca("index", f"{server.url}/part-{{000..003}}.tar", *arguments) == 0
    told = capsys.readouterr().out.splitlines()[1]
    assert told.endswith(
        "copy these tars into a local folder TARS, then alasca shard webdataset --root TARS --split test"
        f" --label-field label --out {tmp_path}/index-shuffled"
    )


def test_shuffled_tars_are_not_warned_about(
    built: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Our own shards are such tars, too."""
    assert alasca("index", built.root, "--out", tmp_path / "index") == 0
    printed = capsys.readouterr()
    assert "WARNING" not in printed.out
    again = Manifest.load(tmp_path / "index")
    assert again.labels.tolist() == built.labels.tolist()
    assert pictures(again) == pictures(built)
    assert alasca("inspect", tmp_path / "index", "--sheet", tmp_path / "sheet.png") == 0
    assert f"shards in  {os.path.relpath(built.root, tmp_path / 'index')}" in capsys.readouterr().out
    assert (tmp_path / "sheet.png").stat().st_size > 1000
