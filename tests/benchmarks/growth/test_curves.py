"""The shortest real growth curves."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.growth.curves import measure
from benchmarks.growth.report import write_report
from benchmarks.growth.results import Plan
from benchmarks.load.result import missing_tools

PLAN = Plan(seconds=1, loaded=(2,), requests=300, rss_points=2)


def test_models_and_requests_are_measured_and_reported(tmp_path: Path):
    assert not missing_tools(), "; ".join(missing_tools())
    path = measure(["models", "requests"], PLAN, tmp_path)
    curves = json.loads(path.read_text())["curves"]
    assert [curve["name"] for curve in curves] == ["models", "requests"]
    for curve in curves:
        for point in curve["points"]:
            assert point["failed"] == 0
            assert point["requests_per_s"] > 20
            assert point["rss_mb"] > 20
    assert curves[1]["points"][-1]["x"] >= 300
    assert "2 | " in write_report(path)
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
