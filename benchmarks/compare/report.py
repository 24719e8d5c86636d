"""The Markdown report of a comparison."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from benchmarks.compare.results import BOUND, Comparison, Verdict, judge, read
from benchmarks.markdown import table


def write_report(path: Path) -> str:
    """Write FILE.md and return its text."""
    text = markdown(read(path))
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    return text


def markdown(comparison: Comparison) -> str:
    """The machine and trees, a row per scenario, and the scenarios below their bound."""
    before, after, machine = comparison.before, comparison.after, comparison.machine
    verdicts = judge(comparison)
    parts = [
        f"Measured {comparison.date} on {machine.cores} cores of {machine.cpu}, {machine.system}; "
        f"load average before: {machine.load_average_before[0]:g}. {comparison.rounds} interleaved "
        f"rounds with {comparison.seconds} seconds per sample. Ratios are after / before within "
        "a round: the median, and the range in brackets.",
        "\n".join(
            f"- {side}: revision {tree.revision}, Python {tree.python}, "
            + ", ".join(f"{name} {version}" for name, version in tree.versions.items())
            for side, tree in (("before", before), ("after", after))
        ),
    ]
    if (before.python, before.versions) != (after.python, after.versions):
        parts.append("**The two environments differ, so the ratios are not of the code alone.**")
    if not comparison.finished:
        parts.append("**The run was interrupted: not everything was measured.**")
    parts.append(
        table(
            ["scenario", "before", "after", "ratio", "bound", "CPU before", "CPU after", "holds"],
            [_row(verdict) for verdict in verdicts],
        )
    )
    below = [verdict for verdict in verdicts if not verdict.holds]
    if below:
        names = ", ".join(f"{each.scenario.name} ({_ratio(each.ratio)})" for each in below)
        parts.append(f"**Below the bound: {names}.**")
    else:
        parts.append("No scenario is below its bound.")
    ratios = [verdict.ratio for verdict in verdicts if not math.isnan(verdict.ratio)]
    if ratios:
        mean = statistics.geometric_mean(ratios)
        parts.append(f"Geometric mean of the {len(ratios)} ratios: {mean:.3f}.")
    parts += [f"- {problem}" for problem in comparison.problems]
    return "\n\n".join(parts) + "\n"


def _row(verdict: Verdict) -> list[str]:
    if math.isnan(verdict.ratio):
        return [verdict.scenario.name, "", "", "", f"{BOUND:g}", "", "", "**no sample**"]
    return [
        verdict.scenario.name,
        f"{verdict.before:,.0f}/s",
        f"{verdict.after:,.0f}/s",
        f"{_ratio(verdict.ratio)} ({verdict.lowest:.2f} to {verdict.highest:.2f})",
        f"{BOUND:g}",
        f"{verdict.cpu_before:,.0f} us",
        f"{verdict.cpu_after:,.0f} us",
        "yes" if verdict.holds else "**no**",
    ]


def _ratio(ratio: float) -> str:
    return f"{ratio:.3f}"
