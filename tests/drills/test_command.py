"""`python -m drills`: a table, and an exit status that tells."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from drills import __main__ as command
from drills import stops
from drills.job import Failed
from drills.row import Row
from drills.scene import Scene

PAGE = Path(__file__).parents[2] / "docs" / "drills.md"


def passes(scene: Scene) -> Iterator[Row]:
    yield Row("good", "torchrun, 2 ranks", "killed | ended", status="0", same="yes, bit for bit", seconds=1.6)


def leaves_a_file(scene: Scene) -> Iterator[Row]:
    yield Row("bad", "python, 1 rank", "stopped", partial=["run/.summary.json.tmp"])


def breaks(scene: Scene) -> Iterator[Row]:
    yield from passes(scene)
    raise Failed("no step within 150 s")


@pytest.fixture(autouse=True)
def drills(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "DRILLS", {"good": passes, "bad": leaves_a_file, "broken": breaks})
    monkeypatch.setattr(command.tempfile, "tempdir", str(tmp_path))


def test_a_table_takes_the_place_of_the_one_in_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{command._BEGIN}old\n{command._END}after\n")
    assert command.main(["--only", "good", "--out", str(page)]) == 0
    text = page.read_text()
    row = "| good | torchrun, 2 ranks | killed / ended | 0 | - | yes, bit for bit | none | none | 2 |"
    assert row in text and row in capsys.readouterr().out
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]


def test_what_failed_is_named_kept_and_told_by_the_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("as it is")
    assert command.main(["--out", str(page)]) == 1
    shown = capsys.readouterr()
    assert "    partial file: run/.summary.json.tmp" in shown.out.splitlines()
    assert "    no step within 150 s" in shown.out.splitlines()
    assert "| **FAILED** bad |" in shown.out and "| **FAILED** broken |" in shown.out
    assert "2 of 4 failed" in shown.err
    assert page.read_text() == "as it is"


def test_the_page_shows_a_complete_run_in_which_nothing_failed() -> None:
    text = PAGE.read_text()
    assert text.count(command._BEGIN) == text.count(command._END) == 1
    table = text.split(command._BEGIN)[1].split(command._END)[0]
    assert "FAILED" not in table and ", 0 failed." in table
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    drills = Counter(row[0] for row in rows[2:])
    assert set(drills) == {
        "damaged checkpoint", "wandb", "S3 down", "a node killed", "other processes", "SIGTERM", "SIGKILL"
    }  # fmt: skip
    done = [f"{row[1]}: {row[2]}" for row in rows]
    kills = re.search(r"the run that was killed (\d+) times, at its end", "".join(done))
    assert kills is not None and int(kills[1]) >= 20
    assert sum(", in the write of" in words for words in done) >= 10
    for launcher, targets in stops._TARGETS.items():
        for target in targets:
            told = [words for words in done if re.match(rf"{launcher}, \d ranks?: {target}, ", words)]
            assert len(told) == len(stops._PHASES), (launcher, target)
