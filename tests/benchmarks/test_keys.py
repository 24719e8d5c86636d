"""The cost of a decision, with the real gate, and what a real server answers to wrong keys."""

from __future__ import annotations

import re

import pytest

from benchmarks import keys


def test_both_tables_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    keys.main(["--keys", "3", "--rounds", "1", "--requests", "5"])  # its status depends on the time
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Gate.admit with 4 keys")
    rows = {name.strip(): figures for name, _, figures in (line.partition(": ") for line in lines)}
    assert {*keys.decisions(0), *keys._PATHS} < rows.keys()
    assert all(float(rows[name]) > 0 for name in keys.decisions(0))
    assert all(re.search(r"quartiles \d", rows[name]) for name in keys._PATHS)


def test_the_limit_decides_about_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    for microseconds, status in ((2.9, 0), (3.1, 1)):
        monkeypatch.setattr(keys, "microseconds", lambda call, us=microseconds: us)
        assert keys.main(["--rounds", "1", "--requests", "0"]) == status
