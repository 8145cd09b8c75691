"""docs/security.md promises guards: each row names the tests that prove it, and they are there."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "security.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.endswith("| test |")]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_the_tests_of_a_row_are_there(row: str) -> None:
    cells = row.strip("| ").split(" | ")
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", cells[-1])
    assert all(cells) and len(named) == len(cells[-1].split(", ")) > 0
    for file, name in named:
        tree = ast.parse((TESTS / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}: {name}"


def test_the_page_has_rows() -> None:
    assert len(ROWS) >= 15
