"""The comparison in wandb: a run of the group, with figures, table and page."""

import json
from pathlib import Path

import pytest
from viewed import records

from pipeline.config import Track
from pipeline.report import group, page
from pipeline.report.results import Results

pytestmark = pytest.mark.timeout(120)


def test_the_group_gets_the_figures_the_table_and_the_page(
    comparison: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    html = tmp_path / "report.html"
    html.write_text(page.render(comparison))
    group.show(comparison, tmp_path, html, Track(group="digits"))
    assert capsys.readouterr().err == ""
    ((_, found),) = records(tmp_path / "comparison")
    run = next(r.run for r in found if r.WhichOneof("record_type") == "run")
    assert (run.run_group, run.display_name) == ("digits", "comparison")

    summary = {i.key: json.loads(i.value_json) for r in found for i in r.summary.update if i.key}
    alasca = next(m for m in comparison.methods if m.name == "alasca")
    last = next(a for a in alasca.accuracies if (a.set, a.head, a.choice) == ("test", "main", "last"))
    assert summary["alasca/test/averaged/last/mean"] == pytest.approx(
        sum(r.last["test/averaged"] for r in alasca.runs) / 3
    )
    assert summary["alasca/test/main/last/to_baseline"] == pytest.approx(last.to_baseline.mean)
    assert summary["alasca/test/main/last/to_reference"] == pytest.approx(last.to_reference.mean)
    assert last.to_baseline.mean != pytest.approx(last.to_reference.mean)
    assert summary["alasca/test/main/last/to_baseline/low"] == pytest.approx(last.to_baseline.low)
    assert summary["alasca/images_per_s/best_ratio"] == pytest.approx(alasca.best_ratio)
    # 24 s an evaluation against 70 s, for the same images.
    assert summary["alasca/images_per_s/ratio"] == pytest.approx(70 / 24, rel=1e-6)
    assert summary["lipschitz/test/main/last/to_reference"] == 0
    (copied,) = (tmp_path / "comparison").glob("wandb/offline-run-*/files/media/html/*.html")
    assert copied.read_text() == html.read_text()
    (table,) = (tmp_path / "comparison").glob("wandb/offline-run-*/files/media/table/*.json")
    shown = json.loads(table.read_text())
    own_id = (tmp_path / "comparison/wandb/id").read_text()
    group.show(comparison, tmp_path, html, Track(group="digits"))
    assert (tmp_path / "comparison/wandb/id").read_text() == own_id, "the same run of the group again"
    assert shown["columns"][0] == "method" and [row[0] for row in shown["data"]] == [m.name for m in comparison.methods]


def test_wandb_that_cannot_write_is_one_warning(
    comparison: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "comparison").write_text("in the way")
    group.show(comparison, tmp_path, tmp_path / "report.html", Track())
    assert capsys.readouterr().err.count("warning: wandb is out") == 1


def test_disabled_leaves_nothing(comparison: Results, tmp_path: Path) -> None:
    group.show(comparison, tmp_path, tmp_path / "report.html", Track(wandb="disabled"))
    assert not (tmp_path / "comparison").exists()
