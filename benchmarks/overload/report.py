"""The tables of an overload run."""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks.markdown import table
from benchmarks.overload.results import Phase, Probed, Results, Scenario, judge, read


def write_report(path: Path) -> str:
    """Write FILE.md and return its text."""
    text = markdown(read(path))
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    return text


def markdown(results: Results) -> str:
    """The bars, then the phases, probes and memory behind them."""
    machine = results.machine
    pins = (
        "the server on one core, generator and prober on another" if results.pinned else "no pins"
    )
    parts = [
        f"Measured {results.date} at revision {machine.revision} on {machine.cores} cores of "
        f"{machine.cpu}, Python {machine.python}; load average before: "
        f"{machine.load_average_before[0]:g}. One worker, default settings, requests of "
        f"{results.plan.images} images; {pins}."
    ]
    if not results.finished:
        parts.append("**The run was interrupted: not everything was measured.**")
    verdicts = judge(results)
    rows = [[each.subject, each.bar, each.measured, _WORDS[each.holds]] for each in verdicts]
    parts.append(table(["load", "bar", "measured", "holds"], rows))
    failed = sum(each.holds is False for each in verdicts)
    unjudged = sum(each.holds is None for each in verdicts)
    parts.append(f"**{failed} of {len(verdicts)} bars do not hold, {unjudged} are not judged.**")
    parts += [f"- {problem}" for problem in results.problems]
    for scenario in results.scenarios:
        parts.append(f"### {scenario.name}")
        parts += _limits(scenario)
        phases = [*scenario.peaks, scenario.light, scenario.normal]
        phases += [scenario.overload, scenario.recovery]
        parts.append(table(_COLUMNS, [_phase(phase) for phase in phases]))
        parts.append(_probe_table(scenario.probed))
    if results.abuses:
        parts.append("### Abuse")
        rows = [
            [
                abuse.name,
                ", ".join(f"{count:,} {kind}" for kind, count in abuse.did.items()),
                *(f"{x:.0f}" for x in (abuse.before_mb, abuse.peak_mb, abuse.after_mb)),
                " / ".join(f"{each.p99_ms:.1f}" for each in abuse.probed),
                " / ".join(f"{each.slowest_ms:.0f}" for each in abuse.probed),
            ]
            for abuse in results.abuses
        ]
        paths = " / ".join(each.path for each in results.abuses[0].probed)
        header = ["load", "did", "MB before", "peak", "after rest", f"p99 ms of {paths}", "slowest"]
        parts.append(table(header, rows))
    if results.timings:
        parts.append("### Deadlines while a model runs")
        rows = [
            [
                each.name,
                str(each.count),
                *(f"{x:.1f}" for x in (each.error_p50_ms, each.error_p99_ms, each.largest_ms)),
                _counts(each.results),
            ]
            for each in results.timings
        ]
        parts.append(
            table(["", "at their deadline", "error p50, ms", "p99", "largest", "answers"], rows)
        )
    return "\n\n".join(parts) + "\n"


_WORDS = {True: "yes", False: "**no**", None: "not judged"}
_COLUMNS = [
    "phase", "offered/s", "sent/s", "goodput/s", "p50 ms", "p99", "slowest",
    "refused", "refused p50 ms", "p99 ", "Retry-After s", "answers",
    "generator cores", "sent late p99 ms", "server cores", "others",
]  # fmt: skip


def _limits(scenario: Scenario) -> list[str]:
    lines = [
        f"**The bars on the load are not judged. Phase '{phase.name}': {phase.doubt}.**"
        for phase in (*scenario.peaks, scenario.normal, scenario.overload)
        if phase.doubt
    ]
    lines.append(
        "Per CPU second of the server, the goodput under overload is "
        f"{scenario.per_cpu_second:.0%} of that at the peak."
    )
    if scenario.overload.sent < 0.98 * scenario.overload.offered:
        missing = 1 - scenario.overload.sent / scenario.overload.offered
        lines.append(
            f"{missing:.0%} of the arrivals found every connection waiting for the server and were "
            f"not sent: {scenario.overload.sent / scenario.peak:.1f} times the peak reached it."
        )
    return lines


def _phase(phase: Phase) -> list[str]:
    return [
        phase.name,
        f"{phase.offered:,.0f}",
        f"{phase.sent:,.0f}",
        f"{phase.goodput:,.0f}",
        *map(_ms, (phase.p50_ms, phase.p99_ms, phase.slowest_ms)),
        f"{phase.refused:,}",
        *map(_ms, (phase.refused_p50_ms, phase.refused_p99_ms)),
        " to ".join(f"{seconds:g}" for seconds in phase.retry_after),
        _counts(phase.results),
        f"{phase.generator_cores:.2f}",
        f"{phase.lateness_p99_ms:.1f}",
        f"{phase.server_cores:.2f}",
        f"{phase.other_cores:.2f}",
    ]


def _probe_table(probed: list[Probed]) -> str:
    return table(
        ["probe", "count", "p50 ms", "p99", "slowest", "not 200"],
        [
            [
                each.path,
                str(each.count),
                *map(_ms, (each.p50_ms, each.p99_ms, each.slowest_ms)),
                _counts(each.failures),
            ]
            for each in probed
        ],
    )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()))


def _ms(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1f}" if value < 100 else f"{value:,.0f}"
