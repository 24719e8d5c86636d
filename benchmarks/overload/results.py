"""The results of an overload run, its bars, and whether they hold."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.host import Host
from benchmarks.load.arrivals import Outcome, percentile
from benchmarks.load.prober import Probes

OVERLOAD = 5.0  # times the peak
NORMAL, LIGHT = 0.8, 0.2  # shares of the peak
# Above this share of a core the generator is the limit; if it sends later, it got no core. The
# prober uses some of the cores of other programs.
_MAX_GENERATOR_CORES, _MAX_LATENESS_S, _MAX_OTHER_CORES = 0.9, 0.02, 0.4
# Answers that say "later" or "too late", by HTTP status and gRPC status; all others but "ok" are
# faults of the server.
REFUSALS = frozenset(
    ("503", "429", "504", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "expired")
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Lengths in seconds; each open loop of `images` images per request."""

    images: int = 16
    peak_s: float = 4.0
    normal_s: float = 8.0
    overload_s: float = 8.0
    recovery_s: float = 4.0
    abuse_s: float = 6.0
    rest_s: float = 10.0
    deadline_s: float = 1.0


@dataclass(slots=True)
class Phase:
    """One phase of load; times in ms, rates per second. NaN for what did not occur."""

    name: str
    seconds: float
    offered: float  # arrivals
    sent: float
    goodput: float
    p50_ms: float
    p99_ms: float
    slowest_ms: float
    refused: int
    refused_p50_ms: float
    refused_p99_ms: float
    retry_after: list[float]  # shortest and longest
    results: dict[str, int]  # by kind
    lateness_p99_ms: float
    generator_cores: float
    server_cores: float
    other_cores: float

    @property
    def doubt(self) -> str:
        """Why the load may explain the figures instead of the server; empty if it does not."""
        if self.generator_cores > _MAX_GENERATOR_CORES:
            return f"the generator used {self.generator_cores:.2f} cores: it was the limit"
        if self.lateness_p99_ms > _MAX_LATENESS_S * 1000:
            late = self.lateness_p99_ms
            return f"the generator sent {late:.0f} ms late: other programs used its core"
        if self.other_cores > _MAX_OTHER_CORES:
            return f"other programs used {self.other_cores:.1f} cores"
        return ""


@dataclass(slots=True)
class Probed:
    """The probes of one path."""

    path: str
    count: int
    p50_ms: float
    p99_ms: float
    slowest_ms: float
    failures: dict[str, int]


@dataclass(slots=True)
class Scenario:
    """One model over one transport, with or without deadlines."""

    model: str
    wire: str
    deadline_s: float
    run_ms: float  # one run of the model with the largest batch
    peaks: list[Phase]
    light: Phase
    normal: Phase
    overload: Phase
    recovery: Phase
    recovery_s: float
    probed: list[Probed]

    @property
    def name(self) -> str:
        deadline = f", deadline {self.deadline_s:g} s" if self.deadline_s else ""
        return f"{self.model}, {self.wire}{deadline}"

    @property
    def peak(self) -> float:
        return max(phase.goodput for phase in self.peaks)

    @property
    def per_cpu_second(self) -> float:
        """Goodput per CPU second of the server under overload, as a share of that at the peak.

        Other programs on the machine change this less than they change the goodput.
        """
        best = max(self.peaks, key=lambda phase: phase.goodput)
        if not (best.server_cores and self.overload.server_cores):
            return math.nan
        at_peak = best.goodput / best.server_cores
        return self.overload.goodput / self.overload.server_cores / at_peak


@dataclass(slots=True)
class Abuse:
    """One abusive load: what it did, probes during it, and the memory of the largest worker."""

    name: str
    did: dict[str, int]
    probed: list[Probed]
    before_mb: float
    peak_mb: float
    after_mb: float
    other_cores: float = 0.0  # that programs used other than server and attack
    problem: str = ""


@dataclass(slots=True)
class Timing:
    """How far from its time a `timeout` or deadline was answered, while a model ran.

    `count` requests reached their deadline; `results` has the answers of all.
    """

    name: str
    count: int
    error_p50_ms: float
    error_p99_ms: float
    largest_ms: float
    results: dict[str, int]


@dataclass(slots=True)
class Results:
    """One run."""

    date: str
    machine: Host
    plan: Plan
    pinned: bool
    scenarios: list[Scenario] = field(default_factory=list)
    abuses: list[Abuse] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    finished: bool = False


class Verdict(NamedTuple):
    """A bar and what was measured; `holds` is None if the measurement says nothing about it."""

    subject: str
    bar: str
    measured: str
    holds: bool | None


def summary(outcome: Outcome) -> Phase:
    """What a report shows of a phase."""
    accepted, refused = [], []
    good_in_time = 0
    for due, latency, result in zip(outcome.due, outcome.latencies, outcome.results, strict=True):
        if result == "ok":
            accepted.append(latency * 1000)
            good_in_time += due + latency <= outcome.seconds
        elif result in REFUSALS:
            refused.append(latency * 1000)
    sent = len(outcome.results)
    return Phase(
        name=outcome.name,
        seconds=outcome.seconds,
        offered=(sent + outcome.not_sent) / outcome.seconds,
        sent=sent / outcome.seconds,
        goodput=good_in_time / outcome.seconds,
        p50_ms=percentile(accepted, 50),
        p99_ms=percentile(accepted, 99),
        slowest_ms=max(accepted, default=math.nan),
        refused=len(refused),
        refused_p50_ms=percentile(refused, 50),
        refused_p99_ms=percentile(refused, 99),
        retry_after=[min(outcome.retry_after), max(outcome.retry_after)]
        if outcome.retry_after
        else [],
        results=dict(Counter(outcome.results)),
        lateness_p99_ms=percentile(outcome.lateness, 99) * 1000,
        generator_cores=outcome.generator_cpu_s / outcome.seconds,
        server_cores=outcome.server_cpu_s / outcome.seconds,
        other_cores=(outcome.machine_cpu_s - outcome.generator_cpu_s - outcome.server_cpu_s)
        / outcome.seconds,
    )


def recovery_seconds(outcome: Outcome, normal_p99_ms: float) -> float:
    """Seconds until the load is answered as usual: without a refusal, within 3 times the p99.

    Counted from the start of the phase to the due time of the last bad request; one slow request
    in a hundred is usual. Infinite if the last requests are bad.
    """
    requests = sorted(zip(outcome.due, outcome.latencies, outcome.results, strict=True))
    slow_allowed = len(requests) // 100
    for position in range(len(requests) - 1, -1, -1):
        due, latency, result = requests[position]
        is_slow = latency * 1000 > 3 * normal_p99_ms
        slow_allowed -= result == "ok" and is_slow
        if result != "ok" or slow_allowed < 0:
            return due if position < len(requests) - 1 else math.inf
    return 0.0 if requests else math.inf


def probed(path: str, probes: Probes) -> Probed:
    """What a report shows of probes."""
    latencies = [1000 * latency for latency in probes.latencies]
    return Probed(
        path=path,
        count=len(latencies),
        p50_ms=percentile(latencies, 50),
        p99_ms=percentile(latencies, 99),
        slowest_ms=max(latencies, default=math.nan),
        failures=probes.failures,
    )


def judge(results: Results) -> list[Verdict]:
    """One verdict per bar."""
    verdicts = []
    for scenario in results.scenarios:
        verdicts += _scenario(scenario)
    for abuse in results.abuses:
        verdicts += _abuse(abuse)
    for timing in results.timings:
        verdicts.append(
            Verdict(
                timing.name,
                "answered within 20 ms of its time (p99)",
                f"{timing.error_p99_ms:.1f} ms",
                timing.error_p99_ms <= 20 if timing.count else None,
            )
        )
    return verdicts


def _scenario(scenario: Scenario) -> list[Verdict]:
    overload, peak = scenario.overload, scenario.peak
    bound = 3 * scenario.normal.p99_ms + scenario.run_ms
    broken = {
        kind: count
        for phase in (scenario.overload, scenario.recovery)
        for kind, count in phase.results.items()
        if kind not in REFUSALS and kind not in ("ok", "late")
    }
    bars = [
        (
            "goodput at least 85 % of peak",
            f"{overload.goodput / peak:.0%}",
            overload.goodput >= 0.85 * peak,
        ),
        (
            "accepted p99 under 3 times that at 80 % of peak, plus one run",
            f"{overload.p99_ms:.0f} ms, bound {bound:.0f} ms",
            overload.p99_ms < bound,
        ),
        ("recovery within 1 s", f"{scenario.recovery_s:.2f} s", scenario.recovery_s <= 1),
        ("no request lost, unanswered or wrong", f"{broken or 0}", not broken),
    ]
    limited = any(phase.doubt for phase in (*scenario.peaks, scenario.normal, overload))
    verdicts = [
        Verdict(scenario.name, bar, measured, None if limited else holds)
        for bar, measured, holds in bars
    ]
    return verdicts + _probes(scenario.name, scenario.probed, 100)


def _abuse(abuse: Abuse) -> list[Verdict]:
    if abuse.problem:
        return [Verdict(abuse.name, "the load runs", abuse.problem, None)]
    growth = abuse.after_mb / abuse.before_mb - 1
    probes = _probes(abuse.name, abuse.probed, 50)
    if abuse.other_cores > _MAX_OTHER_CORES:
        probes = [
            verdict._replace(
                measured=f"{verdict.measured}; other programs used {abuse.other_cores:.1f} cores",
                holds=None,
            )
            for verdict in probes
        ]
    return [
        *probes,
        Verdict(abuse.name, "worker under 256 MB", f"{abuse.peak_mb:.0f} MB", abuse.peak_mb < 256),
        Verdict(
            abuse.name,
            "memory after rest within 20 % of before",
            f"{abuse.before_mb:.0f} -> {abuse.after_mb:.0f} MB ({growth:+.0%})",
            growth <= 0.2,
        ),
    ]


def _probes(subject: str, probed: list[Probed], bound_ms: float) -> list[Verdict]:
    return [
        Verdict(
            subject,
            f"{probes.path} p99 under {bound_ms:g} ms, all 200",
            f"{probes.p99_ms:.1f} ms" + (f", {probes.failures}" if probes.failures else ""),
            probes.p99_ms < bound_ms and not probes.failures,
        )
        for probes in probed
    ]


def read(path: Path) -> Results:
    """Read a results file."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["machine"] = Host(**fields["machine"])
    fields["plan"] = Plan(**fields["plan"])
    for scenario in fields["scenarios"]:
        scenario["peaks"] = [Phase(**phase) for phase in scenario["peaks"]]
        for name in ("light", "normal", "overload", "recovery"):
            scenario[name] = Phase(**scenario[name])
        scenario["probed"] = [Probed(**each) for each in scenario["probed"]]
    fields["scenarios"] = [Scenario(**scenario) for scenario in fields["scenarios"]]
    for abuse in fields["abuses"]:
        abuse["probed"] = [Probed(**each) for each in abuse["probed"]]
    fields["abuses"] = [Abuse(**abuse) for abuse in fields["abuses"]]
    fields["timings"] = [Timing(**timing) for timing in fields["timings"]]
    return Results(**fields)
