"""A short run of the engine benchmark."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.engine.measure import measure
from benchmarks.engine.report import write_report
from benchmarks.engine.results import Plan
from benchmarks.engine.sessions import CONFIGURATIONS


def test_a_short_run_is_measured_and_reported(tmp_path: Path):
    plan = Plan(rows=(1, 8), rounds=2, seconds=0.01, runs_before_memory=1)
    chosen = [each for each in CONFIGURATIONS if each.name in ("default, 1 thread", "as served")]
    path = measure(["mlp"], chosen, plan, tmp_path)
    assert path.name.endswith("-engine.json")
    for each in json.loads(path.read_text())["measured"]:
        assert len(each["load_ms"]) == 2
        assert all(len(each["seconds"][rows]) == 2 for rows in ("1", "8"))
        assert 20 < each["loaded_mb"] <= each["used_mb"] <= each["peak_mb"]
    assert "| as served |" in write_report(path)
