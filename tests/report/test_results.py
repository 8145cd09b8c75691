"""Figures of a comparison against numbers worked out by hand, and what is left out where there is nothing to say."""

import csv
import dataclasses
import io
import json
from collections.abc import Callable
from math import sqrt
from pathlib import Path

import pytest

from pipeline.report import results
from pipeline.report.results import Results
from pipeline.report.statistics import paired, spread, t_quantile
from shards.errors import InputError

MakeRun = Callable[..., Path]


def test_paired_difference_is_of_the_seeds_common_to_both() -> None:
    own, other = spread({0: 0.80, 1: 0.84, 2: 0.85, 7: 0.1}), spread({0: 0.70, 1: 0.70, 2: 0.73, 5: 0.9})
    found = paired(own, other)
    assert found is not None and found.low is not None and found.high is not None
    # Differences 0.10, 0.14, 0.12: mean 0.12, standard deviation 0.02; t of a table with 2 degrees of freedom: 4.303.
    assert found.seeds == [0, 1, 2]
    assert found.mean == pytest.approx(0.12)
    assert found.high - found.mean == pytest.approx(4.303 * 0.02 / sqrt(3), rel=1e-4)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


@pytest.mark.parametrize(("freedom", "value"), [(1, 12.706), (2, 4.303), (4, 2.776), (30, 2.042)])
def test_t_quantiles_are_those_of_the_printed_table(freedom: int, value: float) -> None:
    assert t_quantile(freedom) == pytest.approx(value, abs=5e-4)


def test_one_seed_has_neither_deviation_nor_interval() -> None:
    one = spread({3: 0.5, 4: None})
    assert one is not None and (one.seeds, one.mean, one.std) == ([3], 0.5, None)
    gap = paired(one, spread({3: 0.4}))
    assert gap is not None and (gap.mean, gap.low, gap.high) == (pytest.approx(0.1), None, None)
    assert paired(one, spread({4: 0.4})) is None and paired(one, None) is None and spread({}) is None


def test_figures_by_hand(make_run: MakeRun) -> None:
    methods = {
        "ce": [
            make_run("ce", 0, accuracies={"test/main": [0.3, 0.6, 0.5]}, seconds=4.0),
            make_run("ce", 1, accuracies={"test/main": [0.3, 0.4, 0.5]}, seconds=6.0),
        ],
        "new": [
            make_run(
                "new", 0, accuracies={"test/main": [0.2, 0.7, 0.6], "test/averaged": [0.2, 0.7, 0.7]}, seconds=2.0
            ),
            make_run(
                "new", 1, accuracies={"test/main": [0.6, 0.7, 0.8], "test/averaged": [0.2, 0.7, 0.9]}, seconds=2.0
            ),
        ],
    }
    found = results.collect("t", methods, baseline="ce", reference="ce", target=0.6)
    ce, new = found.methods
    assert found.sets == ["test"]
    main, averaged = new.accuracies
    assert (main.set, main.head, main.choice, main.spread.values) == ("test", "main", "last", [0.6, 0.8])
    assert main.spread.mean == pytest.approx(0.7) and main.spread.std == pytest.approx(0.1 * sqrt(2))
    # Differences 0.1 and 0.3.
    assert main.to_baseline is not None and main.to_baseline.low is not None
    assert main.to_baseline.mean == pytest.approx(0.2)
    assert main.to_baseline.low == pytest.approx(0.2 - 12.7062 * 0.1 * sqrt(2) / sqrt(2), rel=1e-5)
    assert averaged.to_baseline is not None, "to the main head of the baseline, which has no others"
    assert averaged.to_baseline.mean == pytest.approx(0.3)  # 0.7 and 0.9 beside 0.5 and 0.5
    assert [a.head for a in ce.accuracies] == ["main"], "what is missing is absent"

    images = results.cost(new, "images_per_s")
    # 10 steps of 64 images: 320/s against the mean of 160/s and 106.67/s.
    assert images.spread.mean == pytest.approx(320) and images.ratio == pytest.approx(320 / ((160 + 640 / 6) / 2))
    assert results.cost(new, "step_seconds").spread.mean == pytest.approx(0.2)
    assert results.cost(new, "step_seconds").ratio == pytest.approx(0.2 / 0.5)
    assert results.cost(new, "train_seconds").ratio == pytest.approx(6 / 15)
    assert results.cost(ce, "data_wait").ratio == 1

    # ce: at the second evaluation of seed 0, never of seed 1; new: second and first evaluation, 2 s each.
    (slow,), (fast, mean) = ce.reaches, new.reaches
    assert slow.seconds is not None and (slow.seconds.seeds, slow.seconds.values, slow.seeds) == ([0], [8.0], 2)
    assert fast.seconds is not None and fast.seconds.values == [4.0, 2.0]
    assert fast.ratio is None, "no ratio to the mean of the lucky seeds"
    assert mean.head == "averaged" and mean.ratio is None
    assert [(e.step, e.epoch, e.seconds, e.main) for e in new.runs[0].evaluations][1] == (20, 2.0, 4.0, 0.7)
    assert [w.seconds for w in new.runs[0].losses] == [1, 2, 3, 4, 5, 6]


def test_validation_data_choose_and_are_not_reported(make_run: MakeRun) -> None:
    accuracies = {"val/main": [0.1, 0.5, 0.5, 0.4], "test/main": [0.2, 0.3, 0.9, 0.6]}
    methods = {"ce": [make_run("ce", accuracies=accuracies)]}
    found = results.collect("t", methods, baseline="ce", reference=None, target=None, select_by="val")
    chosen = {(a.set, a.choice): a.spread.values for a in found.methods[0].accuracies}
    # The first of two equal steps; not the third, where test is best.
    assert chosen == {("val", "last"): [0.4], ("test", "last"): [0.6], ("test", "chosen"): [0.3]}
    assert found.methods[0].runs[0].chosen["test/main"].step == 20
    assert results.rows(found)[0][1:4] == ["val: main %", "test: main %", "test: main % chosen by val"]
    assert not any("(" in cell for cell in results.rows(found)[1]), "no reference, no ratio"
    assert found.methods[0].reaches == []
    with pytest.raises(InputError, match="has no evaluations on 'clean', which is to choose; it has val, test"):
        results.collect("t", methods, baseline="ce", reference=None, target=None, select_by="clean")


def test_ratios_are_like_for_like_and_best_against_best_stands_apart(make_run: MakeRun) -> None:
    accuracies = {"test/main": [0.5]}
    penalty, batch = {"method.penalty": "har"}, {"data.micro_batch": 64}
    methods = {
        "ours": [make_run("ours", accuracies=accuracies, seconds=2.0)],
        "ours-64": [make_run("ours-64", accuracies=accuracies, seconds=1.0, config=batch)],
        "lip": [make_run("lip", accuracies=accuracies, seconds=8.0, config=penalty)],
        "lip-64": [make_run("lip-64", accuracies=accuracies, seconds=5.0, config=penalty | batch)],
        "other": [make_run("other", accuracies=accuracies, config={"method.base": "gce"}, world=4)],
    }
    found = {m.name: m for m in results.collect("t", methods, baseline="ours", reference="lip", target=None).methods}
    ratios = {name: results.cost(method, "images_per_s").ratio for name, method in found.items()}
    assert ratios == {"ours": 4, "ours-64": 5, "lip": 1, "lip-64": 1, "other": None}
    assert [found[name].compared_to for name in ("ours", "ours-64", "other")] == ["lip", "lip-64", None]
    assert found["other"].unlike == ["processes"]
    whole = results.collect("t", methods, baseline="ours", reference="lip", target=0.5)
    header, *table = results.rows(whole)
    cells = {row[0]: dict(zip(header, row, strict=True)) for row in table}
    assert cells["ours"]["images/s"] == "320 (4.00x)" and cells["ours"]["step s"] == "0.20 (0.25x)"
    assert cells["lip"]["images/s"] == "80.0" and cells["other"]["images/s"] == "320"
    assert cells["ours"]["test: main s to 50%"] == "2.00 (0.25x)"
    lines = list(csv.DictReader(io.StringIO(results.to_csv(whole))))
    assert {line["method"]: line["images_per_s_ratio"] for line in lines} == {
        "ours": "4.0",
        "ours-64": "5.0",
        "lip": "1.0",
        "lip-64": "1.0",
        "other": "",
    }
    assert (found["ours"].best, found["ours"].best_other, found["ours"].best_ratio) == ("ours-64", "lip-64", 5)


def test_a_shorter_run_has_no_like_for_like_length(make_run: MakeRun) -> None:
    methods = {
        "ce": [make_run("ce", accuracies={"test/main": [0.5, 0.6]})],
        "short": [make_run("short", accuracies={"test/main": [0.5]})],
    }
    short = results.collect("t", methods, baseline="ce", reference="ce", target=None).methods[1]
    assert results.cost(short, "images_per_s").ratio == 1
    assert results.cost(short, "train_seconds").ratio is None


def test_configuration_differences_leave_out_what_names_a_run(make_run: MakeRun) -> None:
    changes = {"optim.lr": 0.2, "optim.nesterov": True, "method.gce": {"q": 0.5}}  # the last is not gone by
    methods = {
        "a": [make_run("a", seed, accuracies={"test/main": [0.5]}) for seed in (0, 1)],
        "b": [make_run("b", 0, accuracies={"test/main": [0.5]}, config=changes)],
    }
    found = results.collect("t", methods, baseline="a", reference=None, target=None)
    assert found.differences == {"optim.nesterov": {"b": "True"}, "optim.lr": {"a": "0.1", "b": "0.2"}}


def test_a_long_run_is_thinned_and_a_diverged_loss_stays_a_gap(make_run: MakeRun) -> None:
    losses: list[float | None] = [*(float(n) for n in range(400)), None]
    run = make_run("ce", accuracies={"test/main": [0.5] * 401}, losses=losses)
    found = results.collect("t", {"ce": [run]}, baseline="ce", reference=None, target=None)
    thin = found.methods[0].runs[0].losses
    # 802 windows in groups of 3: losses 0, 0, 1 over 5 steps each; the last group ends with both windows of the gap.
    assert len(thin) == 268 and thin[0].loss == pytest.approx(1 / 3) and thin[0].step == 15
    assert thin[-1].loss is None and thin[-1].step == 4010
    json.loads(results.to_json(found))


def test_norms_are_read_and_long_runs_thinned(make_run: MakeRun) -> None:
    short = [{"input": 3.0, "hidden/stage1": 1.0}, {"input": None, "hidden/stage1": 2.0}]
    long: list[dict[str, float | None]] = [{"input": float(n)} for n in range(400)]
    long[1]["input"] = None
    methods = {
        "ce": [make_run("ce", accuracies={"test/main": [0.5] * 2}, norms=short)],
        "long": [make_run("long", accuracies={"test/main": [0.5] * 400}, norms=long)],
        "none": [make_run("none", accuracies={"test/main": [0.5]})],
    }
    found = results.collect("t", methods, baseline="ce", reference=None, target=None)
    own, thin, none = (method.runs[0].norms for method in found.methods)
    assert [(n.step, n.epoch, n.images, n.values) for n in own] == [(10, 1.0, 8, short[0]), (20, 2.0, 8, short[1])]
    assert len(thin) == 200 and thin[0].values == {"input": None} and none == []
    assert thin[1].step == 40 and thin[1].values["input"] == pytest.approx(sqrt((2**2 + 3**2) / 2))
    json.loads(results.to_json(found))


def test_evidence_is_read_and_long_runs_thinned(make_run: MakeRun) -> None:
    short: list[dict[str, float | None]] = [{"memorised": 0.1, "recall": None}, {"memorised": 0.3, "recall": 0.5}]
    long: list[dict[str, float | None]] = [{"memorised": n / 400, "recall": None} for n in range(400)]
    long[1]["recall"] = 0.25
    methods = {
        "alasca": [make_run("alasca", accuracies={"test/main": [0.5] * 2}, evidence=short)],
        "long": [make_run("long", accuracies={"test/main": [0.5] * 400}, evidence=long)],
        "none": [make_run("none", accuracies={"test/main": [0.5]})],
    }
    found = results.collect("t", methods, baseline="alasca", reference=None, target=None)
    own, thin, none = (method.runs[0].evidence for method in found.methods)
    # Two windows of five steps an evaluation.
    assert [(e.step, e.epoch) for e in own] == [(5, 0.5), (10, 1.0), (15, 1.5), (20, 2.0)]
    assert [e.values["memorised"] for e in own] == [0.1, 0.1, 0.3, 0.3]
    assert [e.values["recall"] for e in own] == [None, None, 0.5, 0.5]
    assert all(e.values["given_top1"] == 0.5 for e in own)
    assert len(thin) == 267 and none == []  # of 800 windows, three each
    assert thin[0].step == 15 and thin[0].values["memorised"] == pytest.approx((0 + 0 + 1) / 3 / 400)
    assert thin[0].values["recall"] == 0.25 and thin[5].values["recall"] is None
    json.loads(results.to_json(found))


def test_json_and_csv_hold_everything(comparison: Results) -> None:
    assert json.loads(results.to_json(comparison)) == json.loads(json.dumps(dataclasses.asdict(comparison)))
    rows = list(csv.DictReader(io.StringIO(results.to_csv(comparison))))
    assert len(rows) == 4 * 3 * 2
    for row in rows:
        method = next(m for m in comparison.methods if m.name == row["method"])
        run = next(r for r in method.runs if r.seed == int(row["seed"]))
        for head in ("main", "averaged"):
            key = f"{row['set']}/{head}"
            assert row[f"{head}_last"] == ("" if key not in run.last else repr(run.last[key]))
            chosen = run.chosen.get(key)
            assert row[f"{head}_chosen"] == ("" if chosen is None else repr(chosen.accuracy))
            seconds = run.reached.get(key, "")
            assert row[f"{head}_seconds_to_target"] == ("not reached" if seconds is None else str(seconds))
        assert float(row["images_per_s"]) == run.images_per_s and row["folder"] == run.folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"baseline": "cee"}, "baseline 'cee' is none of the methods: ce"),
        ({"reference": "lip"}, "reference 'lip' is none of the methods: ce"),
        ({"methods": 2}, r"method 'ce' needs runs of different seeds, got seeds \[0, 0\]"),
    ],
)
def test_mistakes_are_named(make_run: MakeRun, changes: dict, words: str) -> None:
    run = make_run("ce", accuracies={"test/main": [0.5]})
    asked = {"baseline": "ce", "reference": None, "target": None} | changes
    methods = {"ce": [run] * asked.pop("methods", 1)}
    with pytest.raises(InputError, match=words):
        results.collect("t", methods, **asked)
