"""The results of a run: written as JSON, read back by the report."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.host import Host
from benchmarks.serving.scenarios import Scenario

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
    # Open loop only.
    rate: float = 0.0
    p99_lateness_ms: float = 0.0


@dataclass(slots=True)
class Record:
    """What is known about a contender apart from its samples.

    `problems` maps what could not be measured to the reason: the installation, a start, a family
    of scenarios with wrong answers, or one round of a scenario.
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

    def add_problem(self, subject: str, problem: str) -> None:
        """Record and print what could not be measured and why."""
        self.problems[subject] = problem
        print(f"!! {self.name}: {subject}: {problem}", flush=True)


@dataclass(slots=True)
class Results:
    """One run.

    `settings` is the plan of the run, for the record. `disturbed` maps scenarios whose samples are
    invalid to the reason; it is written by hand after the run, and the report leaves them out.
    """

    date: str
    machine: Host
    settings: dict[str, object]
    scenarios: list[Scenario] = field(default_factory=list)
    contenders: list[Record] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    disturbed: dict[str, str] = field(default_factory=dict)
    finished: bool = False
    schema: int = SCHEMA

    def record(self, name: str) -> Record:
        """The record of the contender with this name."""
        return next(record for record in self.contenders if record.name == name)

    def undisturbed(self) -> list[Sample]:
        """The valid samples."""
        return [sample for sample in self.samples if sample.scenario not in self.disturbed]


def read(path: Path) -> Results:
    """Read a results file. Raises ValueError for another schema."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    if fields.get("schema") != SCHEMA:
        raise ValueError(f"{path} has schema {fields.get('schema')}, not {SCHEMA}.")
    fields["machine"] = Host(**fields["machine"])
    fields["scenarios"] = [Scenario(**scenario) for scenario in fields["scenarios"]]
    fields["contenders"] = [Record(**record) for record in fields["contenders"]]
    fields["samples"] = [Sample(**sample) for sample in fields["samples"]]
    return Results(**fields)
