"""Assert statements only narrow types: with `python -O` they are gone, and nothing is unchecked."""

from __future__ import annotations

import ast

import pytest

from tests.conftest import ROOT

TREES = ("service", "training", "clients", "benchmarks", "deploy")


def narrows_a_type(test: ast.expr) -> bool:
    """Whether a condition is `x is not None` or `isinstance(x, T)`."""
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        (right,) = test.comparators
        return isinstance(test.ops[0], ast.IsNot) and getattr(right, "value", 0) is None
    return isinstance(test, ast.Call) and getattr(test.func, "id", "") == "isinstance"


def test_asserts_only_narrow_types() -> None:
    paths = [path for tree in TREES for path in (ROOT / tree).rglob("*.py")]
    asserts = [
        (f"{path.relative_to(ROOT)}:{node.lineno}", node.test)
        for path in paths
        if ".venvs" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert len(asserts) > 20
    assert [place for place, test in asserts if not narrows_a_type(test)] == []


@pytest.mark.parametrize("check", ["x", "x.size < 3", "x == None", "len(x)", "x is None"])
def test_a_check_of_a_value_is_not_taken_for_one_of_a_type(check: str) -> None:
    assert not narrows_a_type(ast.parse(check, mode="eval").body)
