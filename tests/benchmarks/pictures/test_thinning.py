"""Thinning leaves lines of one pixel and breaks nothing."""

from __future__ import annotations

import numpy as np

from benchmarks.pictures.thinning import thin


def test_a_bar_becomes_a_line() -> None:
    bar = np.zeros((20, 40), bool)
    bar[7:14, 5:35] = True
    line = thin(bar)
    assert line.sum(axis=0).max() == 1
    assert 22 <= line.sum() <= 30


def test_a_ring_stays_closed() -> None:
    y, x = np.ogrid[-20:21, -20:21]
    distance = np.hypot(y, x)
    ring = (distance > 8) & (distance < 16)
    line = thin(ring)
    # Every ray from the centre meets the line.
    angles = np.linspace(0, 2 * np.pi, 64)
    radii = np.arange(6, 19)[:, None]
    at = (
        np.rint(20 + radii * np.sin(angles)).astype(int),
        np.rint(20 + radii * np.cos(angles)).astype(int),
    )
    near = line | np.roll(line, 1, 0) | np.roll(line, 1, 1)
    assert near[at].any(axis=0).all()
    assert line.sum() < ring.sum() / 4
