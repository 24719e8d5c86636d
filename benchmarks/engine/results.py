"""The results of an engine benchmark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.engine.sessions import Configuration
from benchmarks.host import Host


@dataclass(frozen=True, slots=True)
class Plan:
    """Rows per run, rounds, and seconds per configuration, number of rows and round."""

    rows: Sequence[int] = (1, 16, 64, 512)
    rounds: int = 5
    seconds: float = 0.1
    # Memory is read again after this many runs of the most rows.
    runs_before_memory: int = 20


@dataclass(slots=True)
class Measured:
    """One configuration with one model: a sample per round, and the MB of its own process."""

    configuration: str
    model: str
    load_ms: list[float] = field(default_factory=list)
    seconds: dict[int, list[float]] = field(default_factory=dict)  # per run, by rows
    loaded_mb: float = 0.0
    used_mb: float = 0.0
    peak_mb: float = 0.0


@dataclass(slots=True)
class EngineResults:
    """One run."""

    date: str
    machine: Host
    plan: Plan
    onnxruntime: str
    configurations: list[Configuration] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)


def read(path: Path) -> EngineResults:
    """Read a results file."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["machine"] = Host(**fields["machine"])
    fields["plan"] = Plan(**fields["plan"])
    fields["configurations"] = [Configuration(**each) for each in fields["configurations"]]
    fields["measured"] = [
        Measured(**each | {"seconds": {int(rows): s for rows, s in each["seconds"].items()}})
        for each in fields["measured"]
    ]
    return EngineResults(**fields)
