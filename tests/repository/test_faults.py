"""The table of faults names tests that exist, and every test of a fault."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "faults.md"
TEST_ID = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows() -> list[list[str]]:
    """Cells of every row of the document's tables, without their heads."""
    lines = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] != "fault" and set(row[0]) != {"-"}]


def marks(node: ast.expr) -> set[str]:
    """Names of the marks in ``pytest.mark.x``, a call of it, or a list of them."""
    return {
        part.attr
        for part in ast.walk(node)
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Attribute) and part.value.attr == "mark"
    }


def marked_tests(path: Path) -> dict[str, set[str]]:
    """Tests of a file with their marks, those of the file among them."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    common: set[str] = set()
    for node in module.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in node.targets):
            common |= marks(node.value)
    return {
        node.name: common.union(*map(marks, node.decorator_list))
        for node in module.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_row_says_what_happens_what_is_lost_and_which_test_shows_it() -> None:
    assert len(rows()) > 30
    for row in rows():
        assert len(row) == 4 and all(row), row
        assert TEST_ID.search(row[3]), f"no test shows: {row[0]}"


@pytest.mark.slow
def test_the_tests_in_the_table_exist() -> None:
    paths = {path for row in rows() for path, _ in TEST_ID.findall(row[3])}
    known = {path: marked_tests(ROOT / path) for path in paths}
    for row in rows():
        for path, name in TEST_ID.findall(row[3]):
            assert name in known[path], f"{path} has no {name}, which shows: {row[0]}"


@pytest.mark.slow
def test_every_test_of_a_fault_is_in_the_table() -> None:
    listed = {found for row in rows() for found in TEST_ID.findall(row[3])}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name, its_marks in marked_tests(path).items():
            if "fault" in its_marks:
                where = str(path.relative_to(ROOT))
                assert (where, name) in listed, f"{where}::{name} shows a fault that docs/faults.md does not name"
