"""The threat model of docs/security.md: each row names tests, and they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from docs.site.hooks import DOCS

PAGE = DOCS / "security.md"
_LINK = re.compile(r"\[[^]]+\]\(([^)\s#]+)\)")


class Row(NamedTuple):
    """A row of a table: its first cell, and the files of tests that its last cell links to."""

    title: str
    tests: list[Path]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def rows(text: str) -> list[Row]:
    """The rows of all tables whose last column is named tests. A table without it is an error."""
    found, lines = [], text.splitlines()
    for above, line, number in zip(lines, lines[1:], range(2, len(lines)), strict=False):
        if not re.fullmatch(r"\|( ?:?-+:? ?\|)+", line):
            continue
        assert cells(above)[-1] == "tests", f"no tests for {above}"
        for row in lines[number:]:
            if not row.startswith("|"):
                break
            title, *_, tests = cells(row)
            found.append(Row(title, [(DOCS / link).resolve() for link in _LINK.findall(tests)]))
    return found


ROWS = rows(PAGE.read_text())


def names_of(node: ast.stmt) -> list[str]:
    """What a statement at the top of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):  # as hypothesis.stateful makes a TestCase of a machine
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def has_tests(file: Path) -> bool:
    """Whether pytest finds tests in a file."""
    return (
        file.name.startswith("test_")
        and file.is_file()
        and any(
            name.startswith(("test_", "Test"))
            for node in ast.parse(file.read_text()).body
            for name in names_of(node)
        )
    )


@pytest.mark.parametrize("row", ROWS, ids=[row.title for row in ROWS])
def test_a_row_names_tests_that_exist(row: Row) -> None:
    assert row.tests
    assert [str(file) for file in row.tests if not has_tests(file)] == []


def test_the_tables_have_entry_points_attacks_and_what_is_kept() -> None:
    titles = " ".join(row.title for row in ROWS)
    for part in (
        "HTTP, 8000", "gRPC, 8001", "health port", "keys", "control plane", "shared memory",
        "web pages", "floods", "playground", "log", "traceparent", "X-Forwarded-For",
        "model repository", "checkpoints", "packages", "older version of TLS",
        "client certificate of another authority",
    ):  # fmt: skip
        assert part in titles, part
    assert len({row.title for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize(
    ("table", "is_right"),
    [
        ("| a | tests |\n|---|---|\n| x | [t](test_docs.py) |\n", False),
        ("| a | tests |\n|---|---|\n| x | none |\n", False),
        ("| a | tests |\n|---|---|\n| x | [t](../tests/conftest.py) |\n", False),
        ("| a | tests |\n|---|---|\n| x | [t](../tests/docs/test_security.py) |\n", True),
    ],
)
def test_a_row_without_a_test_is_found(table: str, is_right: bool) -> None:
    (row,) = rows(table)
    assert (bool(row.tests) and all(map(has_tests, row.tests))) is is_right


def test_a_table_without_the_column_is_found() -> None:
    with pytest.raises(AssertionError, match="no tests for"):
        rows("| a | b |\n| --- | --- |\n| x | y |\n")


def test_each_asset_is_defended_somewhere() -> None:
    """The assets are numbered, and the last sections say what is not done."""
    text = PAGE.read_text()
    assets = re.findall(r"^(\d)\. \*\*", text.split("## Assets")[1].split("\n## ")[0], re.MULTILINE)
    assert assets == [str(number) for number in range(1, len(assets) + 1)]
    not_done = text.split("## What is deliberately not done")[1].split("\n## ")[0]
    assert len(re.findall(r"^- \*\*", not_done, re.MULTILINE)) >= 6
