"""Bars: pure functions of results."""

from __future__ import annotations

import math

import pytest

from benchmarks.contenders import CONTENDERS
from benchmarks.serving.bars import BARS, Bar, judge, per_core
from benchmarks.serving.scenarios import SCENARIOS
from tests.benchmarks.serving import results, sample


def test_ratio_is_of_medians():
    run = results(
        *(sample("ours", rate, i) for i, rate in enumerate((80.0, 90.0, 500.0))),
        *(sample("floor-rsgi", rate, i) for i, rate in enumerate((1.0, 100.0, 120.0))),
    )
    bar = Bar("floor", "raw-16", 0.75, reference="floor-rsgi")
    [verdict] = judge(run, [bar])
    assert verdict.measured == pytest.approx(0.9)
    assert verdict.holds is True
    [verdict] = judge(run, [Bar("floor", "raw-16", 0.95, reference="floor-rsgi")])
    assert verdict.holds is False


def test_absolute_bar_is_an_upper_bound_on_the_median():
    run = results()
    assert (
        judge(run, [Bar(name="ready", scenario="", factor=1.0, metric="ready_seconds")])[0].holds
        is True
    )
    assert (
        judge(run, [Bar(name="ready", scenario="", factor=0.6, metric="ready_seconds")])[0].holds
        is False
    )


def test_bar_without_its_reference_is_not_measured():
    [verdict] = judge(results(sample("ours", 1.0)), [Bar("b", "raw-16", 1, reference="mosec")])
    assert verdict.holds is None
    assert math.isnan(verdict.measured)


def test_cores_of_the_generator_are_added_back_to_two_workers():
    two = sample("ours", 150.0, scenario="raw-128-2w")  # the generator used half a core of two
    assert per_core(two, workers=2, cores=2) == pytest.approx(200.0)
    assert per_core(two, workers=2, cores=8) == pytest.approx(150.0)
    assert per_core(two, workers=1, cores=2) == 150.0


def test_every_bar_names_contenders_and_scenarios_that_exist():
    contenders = {contender.name for contender in CONTENDERS}
    scenarios = {scenario.name for scenario in SCENARIOS} | {""}
    for bar in BARS:
        assert {bar.contender, bar.reference} - {""} <= contenders, bar
        assert {bar.scenario, bar.reference_scenario} <= scenarios, bar
