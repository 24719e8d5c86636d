"""The program that fills the table of recipes, on runs of a second."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.paths import ROOT
from benchmarks.training import recipe_table
from training.errors import UsageError


def test_runs_are_measured_once_and_fill_the_table(tmp_path: Path) -> None:
    results, docs = tmp_path / "results.json", tmp_path / "docs.md"
    docs.write_text(f"before\n{recipe_table.BEGIN}\nold\n{recipe_table.END}\nafter\n")
    arguments = ["--rows", "book-30-30", "--results", str(results), "--docs", str(docs)]
    short = ["--threads", "1", "--epochs", "1", "--train-limit", "200"]
    assert recipe_table.main([*arguments, "--seeds", "0", *short]) == 0
    assert recipe_table.main([*arguments, "--seeds", "0", "1", *short]) == 0
    runs = json.loads(results.read_text())
    assert [run["seed"] for run in runs] == [0, 1]  # the first was not repeated
    assert all(0 < run["accuracy"] < 1 and run["seconds"] > 0 for run in runs)
    assert runs[0]["seconds_to_99"] is None

    # Runs with further options stay out of the table.
    rows = {
        line.split("|")[1].strip(): line for line in docs.read_text().splitlines() if "|" in line
    }
    assert "not measured yet" in rows["`book-30-30`"]
    assert "24,790" in rows["`book-30-30`"]
    plain = [dataclasses.replace(run, extra=[]) for run in recipe_table.read(results)]
    recipe_table.write_table(docs, plain)
    text = docs.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    (row,) = (line for line in text.splitlines() if line.startswith("| `book-30-30`"))
    assert "not measured yet" not in row
    mean = (runs[0]["accuracy"] + runs[1]["accuracy"]) / 2
    assert f"{100 * mean:.3f} ±" in row
    assert "old" not in text


def test_unknown_row_and_missing_marks_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe_table.main(["--rows", "none", "--results", str(tmp_path / "r.json")]) == 2
    assert "no row none" in capsys.readouterr().err
    (tmp_path / "docs.md").write_text("no marks")
    with pytest.raises(UsageError, match="no place for the table"):
        recipe_table.write_table(tmp_path / "docs.md", [])


def test_docs_have_the_table_of_the_measured_runs() -> None:
    runs = recipe_table.read(recipe_table.MEASURED)
    assert runs
    assert recipe_table.table(runs) in (ROOT / "docs" / "training.md").read_text()
