"""The results of a growth benchmark."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.host import Host


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure."""

    seconds: int = 3
    connections: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    batches: tuple[int, ...] = (1, 4, 16, 64, 256, 1024, 4096)
    sides: tuple[int, ...] = (28, 64, 128, 256, 512, 1024)
    loaded: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    requests: int = 2_000_000
    rss_points: int = 40


@dataclass(slots=True)
class Point:
    """One measurement; values that a curve does not measure stay 0."""

    x: float
    requests_per_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    failed: int = 0
    rss_mb: float = 0.0
    ready_s: float = 0.0


@dataclass(slots=True)
class Curve:
    """The points of one contender along one axis."""

    name: str
    contender: str
    model: str
    points: list[Point] = field(default_factory=list)


@dataclass(slots=True)
class Growth:
    """One run."""

    date: str
    machine: Host
    plan: Plan
    curves: list[Curve] = field(default_factory=list)


def read(path: Path) -> Growth:
    """Read a results file."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["machine"] = Host(**fields["machine"])
    fields["plan"] = Plan(**fields["plan"])
    fields["curves"] = [
        Curve(**curve | {"points": [Point(**point) for point in curve["points"]]})
        for curve in fields["curves"]
    ]
    return Growth(**fields)
