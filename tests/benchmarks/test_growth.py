"""The curves of growth: the shortest real ones, and what is said of a long one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.growth import Plan, measure
from benchmarks.growth_report import markdown, memory_growth, write_report
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


def test_memory_counts_from_the_end_of_the_warm_up():
    points = [{"x": x, "rss_mb": mb} for x, mb in ((50, 10.0), (100, 90.0), (1000, 92.5))]
    curve = {"name": "requests", "contender": "ours", "model": "mlp", "points": points}
    assert memory_growth(curve) == pytest.approx(2.5)
    machine = {"revision": "r", "cores": 2, "cpu": "c", "load_average_before": [0.0]}
    text = markdown({"date": "d", "machine": machine, "curves": [curve]})
    assert "1,000 requests; the resident set grew by +2.5 MB" in text
