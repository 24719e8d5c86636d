"""The results of the benchmark of pictures."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from benchmarks.host import Host


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure: digits of each kind, outliers of each, numbers, pictures timed."""

    digits: int = 1000
    outliers: int = 1000
    numbers: int = 1000
    timed: int = 42
    seed: int = 18


QUICK = Plan(digits=20, outliers=20, numbers=10, timed=21)


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure with its bound; one value per model, and the mean of them counts."""

    part: str
    name: str
    unit: str
    bound: float
    at_most: bool
    values: list[float]

    @property
    def value(self) -> float:
        """The mean over the models."""
        return fmean(self.values)

    @property
    def holds(self) -> bool:
        """Whether the mean is within the bound, which NaN never is."""
        # The bound is compared at the precision that is printed.
        value = round(self.value, 3)
        return value <= self.bound if self.at_most else value >= self.bound


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of picture: percentages, one per model."""

    name: str
    accuracy: list[float]
    not_accepted: list[float]
    accepted_and_right: list[float]  # of the accepted ones; NaN without any


@dataclass(slots=True)
class Pictures:
    """One run."""

    date: str
    machine: Host
    plan: Plan
    models: list[str]
    seconds: float = 0.0
    kinds: list[Kind] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    # Percentages per model and digit, and the mean number of digits in a set, per model.
    coverage_by_digit: list[list[float]] = field(default_factory=list)
    set_size: list[float] = field(default_factory=list)
    # Shares in percent of each outlier by reason, "" for accepted, over all models.
    reasons: dict[str, dict[str, float]] = field(default_factory=dict)
    not_measured: list[str] = field(default_factory=list)


def read(path: Path) -> Pictures:
    """Read a results file."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["machine"] = Host(**fields["machine"])
    fields["plan"] = Plan(**fields["plan"])
    fields["kinds"] = [Kind(**kind) for kind in fields["kinds"]]
    fields["bars"] = [Bar(**bar) for bar in fields["bars"]]
    return Pictures(**fields)


def percent(share: float, of: float) -> float:
    """A share in percent; NaN of nothing."""
    return float(100 * share / of) if of else math.nan
