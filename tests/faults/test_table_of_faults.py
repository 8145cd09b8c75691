"""docs/faults.md promises outcomes: each row names tests, and they are there."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "faults.md"
ROWS = [line for line in PAGE.read_text().splitlines() if re.match(r"\| (?!fault \|)", line)]


def functions(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_the_tests_of_a_row_are_there(row: str) -> None:
    fault, outcome, tests = (cell.strip() for cell in row.strip("|").split(" | "))
    assert fault and outcome
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", tests)
    assert len(named) == len(tests.split(", ")) > 0
    for file, name in named:
        assert name in functions(file), f"{file}: {name}"


def test_every_fault_test_is_in_the_table() -> None:
    listed = set(re.findall(r"`faults/([\w]+\.py::\w+)`", PAGE.read_text()))
    there = {
        f"{file.name}::{name}"
        for file in (TESTS / "faults").glob("test_*.py")
        for name in functions(f"faults/{file.name}")
        if name.startswith("test_") and file.name != Path(__file__).name
    }
    assert listed == there
