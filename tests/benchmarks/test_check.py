"""Comparing answers."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.check import WrongAnswer, compare


@pytest.mark.parametrize("wrong", [np.nan, 0.2])
def test_wrong_probability_or_shape_is_an_error(wrong):
    expected = np.full((1, 10), 0.1, np.float32)
    answer = expected.copy()
    answer[0, 3] = wrong
    with pytest.raises(WrongAnswer, match="off by"):
        compare(answer, expected, 1e-4)
    with pytest.raises(WrongAnswer, match="shape"):
        compare(expected[:, :9], expected, 1e-4)
    compare(expected, expected, 1e-4)
