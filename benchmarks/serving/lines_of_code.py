"""Counts the lines that a user of a rival writes to serve the model."""

from __future__ import annotations

import ast
from pathlib import Path

_WRITTEN = (".py", ".json", ".yaml", ".yml", ".toml", ".properties")


def lines_of_code(folder: Path) -> int:
    """Lines of the sources and configuration files in a folder."""
    files = [path for path in folder.rglob("*") if path.suffix in _WRITTEN]
    return sum(count(path.read_text(encoding="utf-8"), path.suffix) for path in files)


def count(text: str, suffix: str) -> int:
    """Lines of one file without blank lines, comments and docstrings."""
    docstrings = _docstring_lines(text) if suffix == ".py" else set()
    return sum(
        bool(line.strip()) and not line.lstrip().startswith("#") and number not in docstrings
        for number, line in enumerate(text.splitlines(), start=1)
    )


def _docstring_lines(text: str) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            value = node.value
            if isinstance(value.value, str) and value.end_lineno is not None:
                lines |= set(range(value.lineno, value.end_lineno + 1))
    return lines
