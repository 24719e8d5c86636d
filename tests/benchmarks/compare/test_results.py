"""Verdicts of a comparison: pure functions of its samples."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.compare.report import markdown, write_report
from benchmarks.compare.results import Checkout, Comparison, Sample, Side, judge, read
from benchmarks.json_file import write_json
from benchmarks.serving.scenarios import Scenario
from tests.benchmarks import HOST

RAW = Scenario(name="raw-16", wire="raw", model="fast", connections=16)
GRPC = Scenario(name="grpc-32", wire="grpc", model="fast", connections=1, streams=32)
TREE = Checkout(tree="/tree", revision="abc", python="3.11.7", versions={"granian": "2.8"})


def samples(scenario: Scenario, side: Side, *rates: float) -> list[Sample]:
    return [
        Sample(
            scenario=scenario.name,
            side=side,
            round=round_,
            requests_per_s=rate,
            p50_ms=1.0,
            p99_ms=2.0,
            cpu_us_per_request=100.0,
        )
        for round_, rate in enumerate(rates)
    ]


def comparison(*scenarios: Scenario, taken: list[Sample], after: Checkout = TREE) -> Comparison:
    return Comparison(
        date="d",
        machine=HOST,
        before=TREE,
        after=after,
        rounds=3,
        seconds=2,
        scenarios=list(scenarios),
        samples=taken,
        finished=True,
    )


def test_ratios_are_taken_within_a_round() -> None:
    # The machine was ten times slower in the second round, for both sides.
    taken = samples(RAW, "before", 100.0, 10.0, 100.0) + samples(RAW, "after", 98.0, 9.8, 99.0)
    [verdict] = judge(comparison(RAW, taken=taken))
    assert verdict.ratio == pytest.approx(0.98)
    assert (verdict.lowest, verdict.highest) == pytest.approx((0.98, 0.99))
    assert (verdict.before, verdict.after) == (100.0, 98.0)
    assert verdict.holds


def test_round_with_one_sample_does_not_count() -> None:
    taken = samples(RAW, "before", 100.0, 100.0) + samples(RAW, "after", 50.0)
    [verdict] = judge(comparison(RAW, taken=taken))
    assert verdict.ratio == 0.5
    assert not verdict.holds


def test_scenario_without_samples_does_not_hold() -> None:
    [verdict] = judge(comparison(RAW, taken=[]))
    assert math.isnan(verdict.ratio)
    assert not verdict.holds
    assert "**no sample**" in markdown(comparison(RAW, taken=[]))


@pytest.mark.parametrize("scenario", [RAW, GRPC])
@pytest.mark.parametrize(("rate", "holds"), [(97.0, True), (96.9, False)])
def test_bound_is_097(scenario: Scenario, rate: float, holds: bool) -> None:
    taken = samples(scenario, "before", 100.0) + samples(scenario, "after", rate)
    [verdict] = judge(comparison(scenario, taken=taken))
    assert verdict.holds is holds


def test_report_has_medians_ratios_and_the_scenarios_below_their_bound(tmp_path: Path) -> None:
    taken = samples(RAW, "before", 1000.0, 1000.0) + samples(RAW, "after", 900.0, 960.0)
    taken += samples(GRPC, "before", 100.0) + samples(GRPC, "after", 110.0)
    results = comparison(RAW, GRPC, taken=taken)
    write_json(tmp_path / "r.json", results)
    assert read(tmp_path / "r.json") == results
    text = write_report(tmp_path / "r.json")
    assert (tmp_path / "r.md").read_text() == text
    row = "| raw-16 | 1,000/s | 930/s | 0.930 (0.90 to 0.96) | 0.97 | 100 us | 100 us | **no** |"
    assert row in text
    assert "**Below the bound: raw-16 (0.930).**" in text
    assert "1.100 (1.10 to 1.10) | 0.97 |" in text


def test_report_says_if_the_environments_differ_or_the_run_was_interrupted() -> None:
    taken = samples(RAW, "before", 100.0) + samples(RAW, "after", 100.0)
    assert "environments differ" not in markdown(comparison(RAW, taken=taken))
    newer = Checkout(tree="/tree", revision="def", python="3.11.7", versions={"granian": "3.0"})
    results = comparison(RAW, taken=taken, after=newer)
    results.finished = False
    assert "environments differ" in markdown(results)
    assert "interrupted" in markdown(results)
