"""What `bench loader` says is there, finite and of the right work. Speed itself is never asserted."""

import dataclasses
import math
from statistics import median

import pytest
from server import serving

from pipeline.bench import loader
from pipeline.bench.loader import Setting
from pipeline.bench.spread import ratios, spread, table
from pipeline.cli import main
from shards.errors import InputError
from shards.manifest import Manifest

TINY = Setting(workers=0, crop=16, micro_batch=5, images=30, repeats=2)


def all_finite(found: loader.LoaderFigures) -> bool:
    series = [values for values in dataclasses.astuple(found) if isinstance(values, list)]
    assert len(series) == 5
    return all(len(v) == found.setting.repeats and all(math.isfinite(x) and x > 0 for x in v) for v in series)


def test_every_figure_is_there_without_workers_and_with_them(photos: Manifest) -> None:
    assert all_finite(loader.measure(photos, TINY))
    assert all_finite(loader.measure(photos, dataclasses.replace(TINY, workers=2)))


def test_the_clock_runs_from_the_first_untimed_batch_to_the_last_timed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def batches(seconds: float):  # type: ignore[no-untyped-def]
        nonlocal now
        for _ in range(10):
            now += seconds
            yield None

    monkeypatch.setattr("pipeline.bench.loader.time.perf_counter", lambda: now)
    stream = batches(0.5)
    assert loader.steady(stream, untimed=2, timed=5, size=8) == 16.0
    assert len(list(stream)) == 3


def test_the_command_prints_the_table(photos: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--workers", "0", "--crop", "16", "--micro-batch", "5", "--images", "20", "--repeats", "2"]
    assert main(["bench", "loader", str(photos.root), *words]) == 0
    out = capsys.readouterr().out
    assert "120 images" in out and "this process alone" in out
    for name in ("loader", "bare loop", "bytes only", "first batch, any step"):
        assert name in out


def test_shards_at_a_url_are_timed_from_the_cache(
    photos: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = ["--workers", "0", "--crop", "16", "--micro-batch", "5", "--images", "20", "--repeats", "1"]
    with serving(photos.root) as server:
        assert main(["bench", "loader", server.url, *words]) == 0
    assert server.url in capsys.readouterr().out
    assert list(tmp_path.glob("alasca/*/*.tar"))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"micro_batch": 121, "images": 500}, "120 images, fewer than 1 micro-batches of 121"),
        ({"images": 9}, "--images 9 is less than two micro-batches of 5"),
    ],
)
def test_too_few_images_are_refused(photos: Manifest, change: dict[str, int], line: str) -> None:
    with pytest.raises(InputError, match=line):
        loader.measure(photos, dataclasses.replace(TINY, **change))


def test_a_missing_dataset_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "loader", "/nowhere"]) == 2
    assert capsys.readouterr().err == "alasca: /nowhere: no such folder\n"


def test_the_spread_is_median_lowest_and_highest() -> None:
    values = [3.0, 1.0, 2.0]
    assert spread(values) == "2.00 [1.00-3.00]"
    assert spread([1234.5, 1e4]) == "5,617 [1,234-10,000]"
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    assert median(values) == 2.0
    assert table(["a", "b"], [["long", "x"]]).splitlines() == ["| a    | b |", "| ---- | - |", "| long | x |"]
