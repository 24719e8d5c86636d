from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.pictures.cuts import cuts_through


def joined(slope: float) -> np.ndarray:
    """Two upright or slanted bars of 8 pixels that a bridge of 4 rows joins."""
    ink = np.zeros((60, 80), np.uint8)
    for row in range(60):
        shift = round(slope * row)
        for left in (10, 40):
            ink[row, left + shift : left + shift + 8] = 255
    ink[28:32, 10 + round(slope * 30) : 44 + round(slope * 30)] = 255
    return ink


@pytest.mark.parametrize("slope", [0.0, 0.4])
def test_a_bridge_is_cut_and_the_strokes_are_not(slope: float) -> None:
    ink = joined(slope)
    cuts, total = cuts_through(ink, 60, 4)
    assert 1.5 < total < 3
    best = min(cuts, key=lambda cut: cut.strokes)
    assert best.strokes < 1
    rows = np.arange(60)
    columns = best.columns - np.round(slope * rows).astype(int)
    assert (columns > 17).all()
    assert (columns <= 40).all()
    assert best.left == pytest.approx(total / 2, abs=0.3)


def test_strokes_that_touch_along_their_length_are_cut_in_the_valley_between_them() -> None:
    ink = np.zeros((60, 40), np.uint8)
    ink[:, 4:36] = 255
    ink[:, 18:22] = 128
    best = min(cuts_through(ink, 60, 4)[0], key=lambda cut: cut.strokes)
    assert (best.columns >= 16).all()
    assert (best.columns <= 23).all()


def test_a_single_stroke_has_no_cuts() -> None:
    ink = np.zeros((60, 12), np.uint8)
    ink[:, 2:10] = 255
    assert not cuts_through(ink, 60, 4)[0]


@given(st.integers(0, 2**32 - 1), st.integers(1, 90), st.integers(1, 90), st.integers(1, 6))
@settings(max_examples=60)
def test_cuts_are_ordered_and_inside(seed: int, height: int, width: int, most: int) -> None:
    random = np.random.default_rng(seed)
    ink = np.where(random.random((height, width)) < 0.4, 255, 0).astype(np.uint8)
    cuts, total = cuts_through(ink, 40.0, most)
    assert len(cuts) <= most
    lefts = [cut.left for cut in cuts]
    assert lefts == sorted(lefts)
    for cut in cuts:
        assert cut.columns.shape == (height,)
        assert cut.columns.min() >= 0
        assert 0 < cut.left < total
