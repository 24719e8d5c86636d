"""Results files."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.json_file import write_json
from benchmarks.serving.results import read
from tests.benchmarks.serving import RAW, TWO, results, sample


def test_results_file_is_read_as_it_was_written(tmp_path: Path):
    run = results(sample("ours", 1.0), scenarios=(RAW, TWO))
    write_json(tmp_path / "r.json", run)
    assert read(tmp_path / "r.json") == run


def test_file_of_another_schema_is_refused(tmp_path: Path):
    run = results()
    run.schema = 99
    write_json(tmp_path / "r.json", run)
    with pytest.raises(ValueError, match="schema 99"):
        read(tmp_path / "r.json")
