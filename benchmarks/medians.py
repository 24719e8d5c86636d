"""The median and spread of a few samples."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median as _median


def median(values: Iterable[float]) -> float:
    """The median; NaN without values."""
    listed = list(values)
    return _median(listed) if listed else float("nan")


def spread(values: Iterable[float]) -> float:
    """Half of the range as a share of the median; 0 for one sample."""
    listed = list(values)
    middle = median(listed)
    return (max(listed) - min(listed)) / 2 / middle if listed and middle else 0.0
