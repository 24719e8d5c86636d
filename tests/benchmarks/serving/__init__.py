"""Results to build reports from."""

from __future__ import annotations

from benchmarks.serving.results import Record, Results, Sample
from benchmarks.serving.scenarios import Scenario
from tests.benchmarks import HOST

RAW = Scenario(name="raw-16", wire="raw", model="fast", connections=16)
TWO = Scenario(name="raw-128-2w", wire="raw", model="fast", connections=128, workers=2)


def sample(contender: str, rate: float, round_: int = 0, scenario: str = "raw-16") -> Sample:
    return Sample(
        scenario=scenario,
        contender=contender,
        round=round_,
        requests_per_s=rate,
        p50_ms=1.5,
        p99_ms=9.5,
        requests=1000,
        failed=0,
        server_cpu_s_per_1000=0.25,
        server_cores=1.0,
        generator_cores=0.5,
    )


def results(*samples: Sample, scenarios: tuple[Scenario, ...] = (RAW,)) -> Results:
    records = [
        Record("ours", "this server", "ours", ready_seconds=[0.5, 0.7, 2.0]),
        Record("floor-rsgi", "floor", "floor"),
    ]
    return Results(
        date="2026-11-24T00:00:00+00:00",
        machine=HOST,
        settings={"rounds": 3, "seconds": 5},
        scenarios=list(scenarios),
        contenders=records,
        samples=list(samples),
        finished=True,
    )
