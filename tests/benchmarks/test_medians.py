"""Medians and spreads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.medians import median, spread

RATES = st.lists(st.floats(0.1, 1e6), min_size=1)


@given(RATES)
def test_median_and_spread_do_not_depend_on_the_order(rates):
    assert median(rates) == median(sorted(rates))
    assert spread(rates) == spread(sorted(rates))
    assert min(rates) <= median(rates) <= max(rates)


def test_spread_is_half_of_the_range_of_the_median():
    assert spread([90.0, 100.0, 110.0]) == pytest.approx(0.1)
    assert spread([100.0]) == 0.0
