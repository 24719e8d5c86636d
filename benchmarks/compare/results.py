"""The results of a comparison and what they say about each scenario."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from benchmarks.host import Host
from benchmarks.medians import median
from benchmarks.serving.scenarios import Scenario

Side = Literal["before", "after"]
SIDES: Sequence[Side] = ("before", "after")
BOUND = 0.97  # the lowest acceptable median of after / before


@dataclass(frozen=True, slots=True)
class Checkout:
    """One of the two trees, with its interpreter and the packages that decide its speed."""

    tree: str
    revision: str
    python: str
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Sample:
    """One load on one side in one round."""

    scenario: str
    side: Side
    round: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us_per_request: float


@dataclass(slots=True)
class Comparison:
    """One run. `problems` are sentences about loads that failed."""

    date: str
    machine: Host
    before: Checkout
    after: Checkout
    rounds: int
    seconds: int
    scenarios: list[Scenario]
    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    finished: bool = False


class Verdict(NamedTuple):
    """Medians of one scenario. Ratios are after / before within a round; NaN without any."""

    scenario: Scenario
    before: float  # requests/s
    after: float
    ratio: float
    lowest: float
    highest: float
    cpu_before: float  # microseconds per request
    cpu_after: float

    @property
    def holds(self) -> bool:
        return self.ratio >= BOUND  # NaN does not hold


def judge(comparison: Comparison) -> list[Verdict]:
    """One verdict per scenario, from the rounds that have both samples."""
    verdicts = []
    for scenario in comparison.scenarios:
        rounds: dict[int, dict[Side, Sample]] = {}
        for sample in comparison.samples:
            if sample.scenario == scenario.name:
                rounds.setdefault(sample.round, {})[sample.side] = sample
        pairs = [(pair["before"], pair["after"]) for pair in rounds.values() if len(pair) == 2]
        ratios = [after.requests_per_s / before.requests_per_s for before, after in pairs]
        verdicts.append(
            Verdict(
                scenario=scenario,
                before=median(before.requests_per_s for before, _ in pairs),
                after=median(after.requests_per_s for _, after in pairs),
                ratio=median(ratios),
                lowest=min(ratios, default=math.nan),
                highest=max(ratios, default=math.nan),
                cpu_before=median(before.cpu_us_per_request for before, _ in pairs),
                cpu_after=median(after.cpu_us_per_request for _, after in pairs),
            )
        )
    return verdicts


def read(path: Path) -> Comparison:
    """Read a results file."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["machine"] = Host(**fields["machine"])
    for side in SIDES:
        fields[side] = Checkout(**fields[side])
    fields["scenarios"] = [Scenario(**scenario) for scenario in fields["scenarios"]]
    fields["samples"] = [Sample(**sample) for sample in fields["samples"]]
    return Comparison(**fields)
