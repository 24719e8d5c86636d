"""What an overload run concludes from its requests."""

from __future__ import annotations

import dataclasses
import math

import pytest

from benchmarks.host import Host
from benchmarks.load.arrivals import Outcome
from benchmarks.load.prober import Probes
from benchmarks.overload.report import markdown
from benchmarks.overload.results import (
    Abuse,
    Plan,
    Results,
    Scenario,
    judge,
    probed,
    recovery_seconds,
    summary,
)

HOST = Host(
    cpu="CPU", cores=2, memory_gb=1, system="Linux", python="3", wrk="", h2load="", revision="abc",
    load_average_before=[0, 0, 0],
)  # fmt: skip


def outcome(latencies: list[float], results: list[str], **fields: object) -> Outcome:
    due = [0.01 * number for number in range(len(latencies))]
    made = Outcome("phase", seconds=1.0, due=due, latencies=latencies, results=results)
    made.lateness = [0.0] * len(latencies)
    made.server_cpu_s = 1.0
    return dataclasses.replace(made, **fields)


def scenario(peak: Outcome, overload: Outcome, recovery: Outcome) -> Scenario:
    return Scenario(
        model="fast", wire="http", deadline_s=0, run_ms=5, peaks=[summary(peak)],
        light=summary(peak), normal=summary(peak), overload=summary(overload),
        recovery=summary(recovery), recovery_s=recovery_seconds(recovery, 10),
        probed=[probed("/live", Probes([0.01] * 98 + [0.3] * 2))],
    )  # fmt: skip


def test_goodput_counts_what_is_answered_within_the_phase() -> None:
    phase = summary(
        outcome([0.1, 2.0, 0.1, 0.1], ["ok", "ok", "503", "late"], not_sent=6, retry_after=[1, 4])
    )
    assert (phase.offered, phase.sent, phase.goodput) == (10, 4, 1)
    assert (phase.refused, phase.retry_after) == (1, [1, 4])
    assert phase.results == {"ok": 2, "503": 1, "late": 1}


@pytest.mark.parametrize(
    ("latencies", "results", "seconds"),
    [
        ([0.01] * 4, ["ok"] * 4, 0.0),
        ([0.01] * 4, ["ok", "503", "ok", "ok"], 0.01),
        ([0.01, 0.01, 0.05, 0.01], ["ok"] * 4, 0.02),
        ([0.01] * 4, ["ok", "ok", "ok", "lost"], math.inf),
        ([], [], math.inf),
        ([0.01] * 150 + [0.05] + [0.01] * 49, ["ok"] * 200, 0.0),  # one in a hundred is usual
        ([0.05] * 3 + [0.01] * 197, ["ok"] * 200, 0.0),
    ],
)
def test_recovery_ends_with_the_last_unusual_request(
    latencies: list[float], results: list[str], seconds: float
) -> None:
    assert recovery_seconds(outcome(latencies, results), 10) == pytest.approx(seconds)


def test_bars_hold_or_fail() -> None:
    peak = outcome([0.01] * 100, ["ok"] * 100)
    good = scenario(peak, peak, peak)
    results = Results("2026-11-26", HOST, Plan(), True, scenarios=[good])
    *load, probes = judge(results)
    assert all(verdict.holds for verdict in load)
    assert probes.holds is False
    half = outcome([0.01] * 40 + [0.5] * 60, ["ok"] * 40 + ["503"] * 59 + ["lost"])
    results.scenarios = [scenario(peak, half, half)]
    assert [verdict.holds for verdict in judge(results)] == [False, True, False, False, False]


def test_bars_are_not_judged_where_the_generator_explains_the_figures() -> None:
    peak = outcome([0.01] * 100, ["ok"] * 100)
    for limited in (
        dataclasses.replace(peak, machine_cpu_s=2.0),
        dataclasses.replace(peak, generator_cpu_s=0.95),
        dataclasses.replace(peak, lateness=[0.5] * 100),
    ):
        results = Results("2026-11-26", HOST, Plan(), True, [scenario(peak, limited, peak)])
        assert [verdict.holds for verdict in judge(results)][:4] == [None] * 4
        assert "are not judged" in markdown(results)


def test_an_abuse_that_could_not_run_holds_no_bar() -> None:
    abuse = Abuse("pictures", {}, [], 100, 100, 100, problem="It failed.")
    (verdict,) = judge(Results("2026-11-26", HOST, Plan(), True, abuses=[abuse]))
    assert verdict.holds is None


@pytest.mark.parametrize(
    ("peak", "after", "holds"), [(255, 120, [True, True]), (300, 121, [False] * 2)]
)
def test_memory_has_a_bound_and_returns(peak: float, after: float, holds: list[bool]) -> None:
    abuse = Abuse("pictures", {"200": 3}, [], 100, peak, after)
    results = Results("2026-11-26", HOST, Plan(), True, abuses=[abuse])
    assert [verdict.holds for verdict in judge(results)] == holds
    assert "3 200" in markdown(results)
