"""The growth curves: the shortest real ones, and the report of a long one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.growth.curves import measure
from benchmarks.growth.report import markdown, memory_growth, write_report
from benchmarks.growth.results import Curve, Growth, Plan, Point
from benchmarks.load.result import missing_tools
from tests.benchmarks import HOST

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
    points = [Point(x, rss_mb=mb) for x, mb in ((50, 10.0), (100, 90.0), (1000, 92.5))]
    curve = Curve("requests", "ours", "mlp", points)
    assert memory_growth(curve) == pytest.approx(2.5)
    text = markdown(Growth("d", HOST, Plan(), [curve]))
    assert "1,000 requests; the resident set grew by +2.5 MB" in text
