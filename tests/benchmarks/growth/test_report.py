"""The report of the growth benchmark."""

from __future__ import annotations

import pytest

from benchmarks.growth.report import markdown, memory_growth
from benchmarks.growth.results import Curve, Growth, Plan, Point
from tests.benchmarks import HOST


def test_memory_counts_from_the_end_of_the_warm_up():
    points = [Point(x, rss_mb=mb) for x, mb in ((50, 10.0), (100, 90.0), (1000, 92.5))]
    curve = Curve(name="requests", contender="ours", model="mlp", points=points)
    assert memory_growth(curve) == pytest.approx(2.5)
    text = markdown(Growth(date="d", machine=HOST, plan=Plan(), curves=[curve]))
    assert "1,000 requests; the resident set grew by +2.5 MB" in text
