"""The ensemble of two networks, and what became of wrong labels: in tables, in files and on the page."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.report import page, results

MakeRun = Callable[..., Path]


def test_the_ensemble_of_two_networks_is_shown_where_there_is_one(make_run: MakeRun) -> None:
    one = make_run("ce", accuracies={"test/main": [0.4, 0.5]})
    two = make_run("pair", accuracies={"test/main": [0.4, 0.6], "test/ensemble": [0.5, 0.7]})
    asked = {"baseline": "ce", "reference": None, "target": 0.65}
    found = results.collect("pairs", {"ce": [one], "pair": [two]}, **asked)
    header, ce, pair = results.rows(found)
    assert header[1:3] == ["test: main %", "test: ensemble %"]
    assert (ce[1:3], pair[1:3]) == (["50.00", ""], ["60.00", "70.00"])
    assert {r.head: r.seconds.mean if r.seconds else None for r in found.methods[1].reaches} == {
        "main": None,
        "ensemble": found.methods[1].runs[0].train_seconds,
    }
    rows = list(csv.DictReader(io.StringIO(results.to_csv(found))))
    assert [row["ensemble_last"] for row in rows] == ["", "0.7"]
    alone = results.collect("alone", {"ce": [one]}, **asked)
    assert "ensemble_last" not in results.to_csv(alone)
    assert "both networks" in page.render(found) and "both networks" not in page.render(alone)


def test_evidence_is_of_the_last_epoch_and_over_seeds(make_run: MakeRun) -> None:
    """Ten steps an evaluation, one epoch; two windows in it."""
    wrong = [[0.1, 0.9, memorised] for memorised in (0.3, 0.5)]
    runs = [
        make_run(
            "ce",
            seed,
            accuracies={"test/main": [0.5] * 3},
            evidence=[{"memorised": value, "recall": None} for value in values],
        )
        for seed, values in enumerate(wrong)
    ]
    bare = make_run("bare", accuracies={"test/main": [0.5]})
    found = results.collect("e", {"ce": runs, "bare": [bare]}, baseline="ce", reference=None, target=None)
    memorised = found.methods[0].evidence["memorised"]
    assert (memorised.values, memorised.mean) == ([0.3, 0.5], pytest.approx(0.4))
    assert found.methods[1].evidence == {}
    assert results.label_rows(found) == [
        ["method", "given %", "memorised %"],
        ["ce", "50.0 +/- 0.0", "40.0 +/- 14.1"],
    ]
    rows = list(csv.DictReader(io.StringIO(results.to_csv(found))))
    assert [row["evidence_memorised"] for row in rows] == ["0.3", "0.5", ""]
    assert "40.0 ± 14.1" in page.render(found)
    none = results.collect("n", {"bare": [bare]}, baseline="bare", reference=None, target=None)
    assert results.label_rows(none) == [] and ",evidence_" not in results.to_csv(none)
