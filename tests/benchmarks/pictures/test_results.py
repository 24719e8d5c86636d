"""Bars hold by the mean over models."""

from __future__ import annotations

import math

import pytest

from benchmarks.pictures.results import Bar, percent


def bar(*values: float, bound: float, at_most: bool = False) -> Bar:
    return Bar("part", "name", "%", bound, at_most, list(values))


def test_the_mean_over_the_models_counts() -> None:
    assert bar(99.5, 99.7, bound=99.6).holds
    assert not bar(99.5, 99.6, bound=99.6).holds
    assert bar(1.9, 2.1, bound=2, at_most=True).holds
    assert not bar(2.0, 2.1, bound=2, at_most=True).holds


@pytest.mark.parametrize("at_most", [True, False])
def test_what_could_not_be_measured_does_not_hold(at_most: bool) -> None:
    assert not bar(math.nan, bound=0, at_most=at_most).holds
    assert math.isnan(percent(0, 0))
    assert percent(1, 4) == 25
