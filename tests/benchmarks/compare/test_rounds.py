"""Comparisons of this checkout with itself, about a second per sample."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.compare.__main__ import main
from benchmarks.compare.results import read
from benchmarks.compare.rounds import NotACheckout, comparable, find_tree
from benchmarks.load.result import missing_tools
from benchmarks.paths import ROOT


def test_scenarios_are_closed_loops_on_one_worker() -> None:
    names = [scenario.name for scenario in comparable()]
    assert {"raw-1", "png-64", "json-16-mlp", "grpc-32", "binary-16"} <= set(names)
    assert not [name for name in names if name.startswith(("open", "bulk")) or "2w" in name]
    assert [scenario.name for scenario in comparable(["bulk-raw"])] == ["bulk-raw"]


def test_both_sides_are_asked_in_turn_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not missing_tools(), "; ".join(missing_tools())
    arguments = ["--before", str(ROOT), "--rounds", "2", "--seconds", "1"]
    arguments += ["--scenarios", "raw-16,grpc-32-mlp", "--results", str(tmp_path)]
    assert main(arguments) in (0, 1)  # at one second per sample, noise may exceed the bound
    [path] = tmp_path.glob("*-compare.json")
    comparison = read(path)
    assert comparison.finished
    assert comparison.problems == []
    assert [(s.scenario, s.side, s.round) for s in comparison.samples] == [
        ("raw-16", "before", 0),
        ("raw-16", "after", 0),
        ("raw-16", "after", 1),
        ("raw-16", "before", 1),
        ("grpc-32-mlp", "before", 0),
        ("grpc-32-mlp", "after", 0),
        ("grpc-32-mlp", "after", 1),
        ("grpc-32-mlp", "before", 1),
    ]
    assert all(s.requests_per_s > 50 and s.cpu_us_per_request > 0 for s in comparison.samples)
    assert path.with_suffix(".md").read_text() in capsys.readouterr().out


def test_folder_that_is_not_a_checkout_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NotACheckout, match="is missing: install the checkout"):
        find_tree(tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").write_text("#!/bin/sh\necho /elsewhere/service.py\n")
    (tmp_path / ".venv" / "bin" / "python").chmod(0o755)
    with pytest.raises(NotACheckout, match="does not import `service` from"):
        find_tree(tmp_path)
    assert main(["--before", str(tmp_path)]) == 2
    assert "does not import" in capsys.readouterr().err


def test_scenario_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--before", str(ROOT), "--scenarios", "nonsense"]) == 2
    assert "'nonsense'" in capsys.readouterr().err
