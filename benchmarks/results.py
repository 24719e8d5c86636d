"""What a run found out, whole: written as JSON, read back by the report."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.scenarios import Scenario

SCHEMA = 1


@dataclass(slots=True)
class Sample:
    """One measurement of one contender in one scenario."""

    scenario: str
    contender: str
    round: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    requests: int
    failed: int
    # CPU of the server's processes and of the load generator during the load.
    server_cpu_s_per_1000: float
    server_cores: float
    generator_cores: float
    rss_mb: float = 0.0
    # Of the open loop only.
    rate: float = 0.0
    p99_lateness_ms: float = 0.0


@dataclass(slots=True)
class Record:
    """What is known of a contender besides its samples.

    `problems` says why something was not measured: the installation, a start, a family of
    scenarios whose answers were wrong, or one round of a scenario.
    """

    name: str
    title: str
    kind: str
    note: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    ready_seconds: list[float] = field(default_factory=list)
    idle_cores: list[float] = field(default_factory=list)
    frozen_when_idle: bool = False
    peak_rss_mb: float = 0.0
    peak_worker_rss_mb: float = 0.0
    install_mb: float = 0.0
    lines_of_code: int = 0

    def tell(self, what: str, problem: str) -> None:
        """Note, loudly, what could not be measured and why."""
        self.problems[what] = problem
        print(f"!! {self.name}: {what}: {problem}", flush=True)


@dataclass(slots=True)
class Results:
    """One run."""

    date: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    scenarios: list[Scenario] = field(default_factory=list)
    contenders: list[Record] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    finished: bool = False
    schema: int = SCHEMA

    def record(self, name: str) -> Record:
        """The contender of that name."""
        return next(record for record in self.contenders if record.name == name)


def write(results: Results, path: Path) -> None:
    """Write, atomically: a run that is cut short leaves what it had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(asdict(results), indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def read(path: Path) -> Results:
    """Read what `write` wrote. Raises ValueError for another schema."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    if fields.get("schema") != SCHEMA:
        raise ValueError(f"{path} has schema {fields.get('schema')}, not {SCHEMA}.")
    fields["scenarios"] = [Scenario(**each) for each in fields["scenarios"]]
    fields["contenders"] = [Record(**each) for each in fields["contenders"]]
    fields["samples"] = [Sample(**each) for each in fields["samples"]]
    return Results(**fields)
