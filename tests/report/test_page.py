"""The page: well formed, escaped, nothing loaded; and looked at by a real browser, wide and narrow, light and dark."""

import dataclasses
import html
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from PIL import Image

from pipeline.report import page, results
from pipeline.report.chart import Curve, chart, log_ticks, ticks
from pipeline.report.results import Results

MakeRun = Callable[..., Path]

HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "link", "br", "wbr"}
# SVG elements that close themselves.
EMPTY = {"path", "polyline", "line"}

MEASURE = """(() => {
  // Not innerWidth: on a phone that grows with what is too wide.
  const window_ = document.documentElement.clientWidth;
  const inside = (e) => e.closest('.scroll, details:not([open])');
  const name = (e) => e.tagName + ' ' + e.textContent.slice(0, 40);
  const out = [...document.querySelectorAll('body *')].filter(e => !inside(e) && e.getClientRects().length
    && !e.closest('figure svg') && e.getBoundingClientRect().right > window_ + 0.5).map(name);
  const cut = [...document.querySelectorAll('figure > svg')].flatMap(svg => {
    const box = svg.getBoundingClientRect();
    return [...svg.querySelectorAll('text')].filter(t => { const r = t.getBoundingClientRect();
      return r.left < box.left - 0.5 || r.right > box.right + 0.5 || r.top < box.top - 0.5
        || r.bottom > box.bottom + 0.5;
    }).map(name);
  });
  const sizes = [...document.querySelectorAll('figure text')].map(t => t.getBoundingClientRect().height);
  return { wide: document.documentElement.scrollWidth, window: window_, out, cut, text: Math.min(...sizes),
    charts: document.querySelectorAll('figure > svg').length, scripts: document.scripts.length,
    colour: getComputedStyle(document.documentElement).backgroundColor };
})()"""


class Nesting(HTMLParser):
    """Every element that opens closes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        assert tag not in EMPTY, f"<{tag}> needs its />"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        assert tag in EMPTY

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_page_is_well_formed_and_loads_nothing(comparison: Results) -> None:
    text = page.render(comparison)
    parsed = Nesting(text)
    tags = [tag for tag, _ in parsed.found]
    assert "script" not in tags and HOSTILE not in text
    assert html.escape(HOSTILE) in text and "r&quot;n&amp;20" in text
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
    loads = [a for _, a in parsed.found if {"src", "href", "srcset", "xlink:href"} & set(a)]
    assert loads == [{"rel": "icon", "href": "data:,"}]
    assert not [name for _, attributes in parsed.found for name in attributes if name.startswith("on")]
    policies = [a["content"] for _, a in parsed.found if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies[0].startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    for tag, attributes in parsed.found:
        assert tag != "th" or attributes["scope"] in ("col", "row")
        assert tag != "svg" or attributes.get("role") != "img" or attributes["aria-label"]
    assert ("html", {"lang": "en"}) in parsed.found and tags.count("title") >= 1


def test_page_shows_the_rows_of_the_console_and_says_what_they_are(comparison: Results) -> None:
    text = "".join(Nesting(page.render(comparison)).text).replace("\N{NO-BREAK SPACE}", " ")
    for row in results.rows(comparison):
        for cell in row:
            assert cell.replace("+/-", "±") in text
    assert "Measured with 2 processes on cpu; alasca 0.1.0, torch 2.15.0." in text
    assert "differs in data.micro_batch" in text and "like for like" in text and "not reached" in text
    assert "the other sets chose nothing" in text
    assert "Smoothness of the network" in text and "a root mean square over 8 images of a step" in text
    assert "What became of wrong labels" in text and "Wrong labels that the network predicts" in text
    assert "Treated as clean: of these, right" in text and "Confidence in right labels" not in text


def test_one_seed_and_nothing_optional(make_run: MakeRun) -> None:
    methods = {name: [make_run(name, accuracies={"test/main": [0.5]}, losses=[None])] for name in ("ce", "gce")}
    text = page.render(results.collect("one", methods, baseline="ce", reference=None, target=None))
    words = "".join(Nesting(text).text)
    assert "n = 1, no interval" in words and "Test data chose nothing" in words
    assert "best against best" not in words and "Time to" not in words and "averaged %" not in words
    assert "Smoothness" not in words and "Jacobian" not in words and "wrong labels" not in words
    assert "nan" not in text.lower().replace("nance", "")


def test_a_run_without_evaluation_sets_still_has_a_page(make_run: MakeRun) -> None:
    found = results.collect("t", {"ce": [make_run("ce", accuracies={})]}, baseline="ce", reference="ce", target=0.5)
    Nesting(page.render(found))
    assert results.to_csv(found).splitlines()[1].startswith("ce,,0,")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 24, [0, 5, 10, 15, 20, 25]),
        (0.2, 0.97, [0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (96.1, 99.4, [96, 97, 98, 99, 100]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.31, 2.5, [0.3, 0.5, 0.7, 1, 1.5, 2, 3]),
        (0.3, 30, [0.2, 0.5, 1, 2, 5, 10, 20, 50]),
        (0.02, 300, [0.01, 0.1, 1, 10, 100, 1000]),
        (1e-9, 1e9, [1e-9, 1e-6, 1e-3, 1, 1e3, 1e6, 1e9]),
        (10, 10, [10, 15]),
    ],
)
def test_log_ticks_are_round_and_enclose(low: float, high: float, expected: list[float]) -> None:
    assert log_ticks(low, high) == pytest.approx(expected)


def test_a_log_axis_places_equal_ratios_at_equal_distances() -> None:
    points: list[tuple[float, float | None]] = [(0, 1.0), (1, 10.0), (2, 100.0), (3, 0.0), (4, 1000.0), (5, 1000.0)]
    found = Nesting(chart("t", "epoch", "norm", [Curve("a", 0, points, [])], log=True)).found
    lines = [a["points"] for tag, a in found if tag == "polyline"]
    heights = [[float(p.split(",")[1]) for p in (line or "").split()] for line in lines]
    assert [len(line) for line in heights] == [3, 2], "what is not above 0 breaks the line"
    assert heights[0][0] - heights[0][1] == pytest.approx(heights[0][1] - heights[0][2], abs=0.11)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium on PATH (Debian: apt-get install chromium)")
    browser = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_it(browser: Browser, comparison: Results, tmp_path: Path, width: int, dark: bool) -> None:
    file, shot = tmp_path / "page.html", tmp_path / "page.png"
    file.write_text(page.render(comparison), encoding="utf-8")
    browser.show(file, width=width, dark=dark)
    seen = browser.ask(MEASURE)
    assert width - 20 <= seen["window"] <= width and seen["wide"] <= seen["window"], "the document scrolls sideways"
    assert seen["out"] == [] and seen["cut"] == [], "something leaves the window or a chart"
    assert seen["charts"] == 21 and seen["scripts"] == 0
    assert seen["text"] >= 11, "letters in charts are too small to read"
    assert seen["colour"] == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    assert browser.complaints() == [] and browser.requests() == [file.as_uri()]

    browser.screenshot(shot)
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert pixels.shape[1] >= width - 20
    counts = np.bincount(pixels.reshape(-1, 3) @ np.array([1 << 16, 1 << 8, 1]), minlength=1 << 24)
    assert np.count_nonzero(counts) > 100, "it is blank"
    assert counts.argmax() == (0x14171B if dark else 0xFFFFFF)
    assert counts[0x56B4E9 if dark else 0x0072B2] > 100, "the first method's curve is not there"


@pytest.mark.timeout(60)
def test_a_browser_would_have_complained(browser: Browser, comparison: Results, tmp_path: Path) -> None:
    """The checks above can fail: a script, a picture from elsewhere and a wide element are all noticed."""
    file = tmp_path / "bad.html"
    bad = '<script>console.log(1)</script><img src="http://127.0.0.1:9/x.png"><p style="width:900px">'
    file.write_text(page.render(comparison).replace("</main>", f"{bad}</main>"), encoding="utf-8")
    browser.show(file, width=400, dark=False)
    assert any("Content Security Policy" in complaint for complaint in browser.complaints())
    seen = browser.ask(MEASURE)
    assert seen["scripts"] == 1 and any(name.startswith("P") for name in seen["out"])


@pytest.mark.timeout(60)
def test_many_methods_stay_apart(browser: Browser, comparison: Results, tmp_path: Path) -> None:
    methods = [dataclasses.replace(comparison.methods[n % 4], name=f"a rather long method name {n}") for n in range(14)]
    file = tmp_path / "many.html"
    many = dataclasses.replace(comparison, methods=methods, baseline=methods[0].name, reference=methods[1].name)
    file.write_text(page.render(many), encoding="utf-8")
    browser.show(file, width=400, dark=False)
    seen = browser.ask(MEASURE)
    assert seen["wide"] <= 400 and seen["out"] == [] and seen["cut"] == []
