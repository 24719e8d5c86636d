"""python -m benchmarks.serving.report FILE: write the report and the plot of a results file.

The same file always gives the same report; nothing is measured. With --docs, a summary goes into
docs/performance.md and its plot into docs/throughput.png.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.contenders import OURS, OURS_SECURED
from benchmarks.markdown import table
from benchmarks.medians import median, spread
from benchmarks.paths import ROOT
from benchmarks.serving.bars import BARS, Bar, Verdict, judge
from benchmarks.serving.plot import draw, heaviest
from benchmarks.serving.results import Record, Results, Sample, read
from benchmarks.serving.scenarios import Scenario
from benchmarks.wire_formats import WIRES

DOCS = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "throughput.png"
_BEGIN, _END = "<!-- results: {name} -->", "<!-- end of results -->"
_SUMMARY = ("raw-1", "raw-64", "json-64", "binary-64", "png-64", "grpc-4x8", "bulk-binary")
_PLOTTED = ("raw-64", "json-64", "png-64", "grpc-4x8")
_QUIET = 0.5  # highest load average before the run at which rates can be trusted


def build(path: Path) -> str:
    """Write FILE.md and FILE.png; returns the Markdown."""
    results = read(path)
    text = markdown(results)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    draw(results, path.with_suffix(".png"), heaviest(results))
    return text


def markdown(results: Results) -> str:
    """The whole report."""
    parts = [_introduction(results), _bars(results), _contenders(results.contenders)]
    families: dict[str, list[Scenario]] = {}
    for scenario in results.scenarios:
        families.setdefault(scenario.family, []).append(scenario)
    parts += [_family(results, scenarios) for scenarios in families.values()]
    parts.append(_secured(results))
    parts.append(_problems(results.contenders))
    return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(results: Results) -> str:
    machine, settings = results.machine, results.settings
    paragraphs = [
        f"Measured {results.date} at revision {machine.revision} on {machine.cores} cores of "
        f"{machine.cpu}, {machine.memory_gb} GB, {machine.system}, Python {machine.python}; "
        f"{machine.wrk.split(' [')[0]}, {machine.h2load}. "
        f"Medians of {settings['rounds']} rounds of {settings['seconds']} s."
    ]
    before = machine.load_average_before[0]
    if before > _QUIET:
        paragraphs.append(
            f"**The machine was not quiet (load average {before:g} before the run): read ratios "
            "with care and ignore rates.**"
        )
    if not results.finished:
        paragraphs.append("**The run was interrupted: not everything was measured.**")
    if results.disturbed:
        paragraphs.append(
            "**Left out because they were disturbed:** "
            + "; ".join(f"{name} ({reason})" for name, reason in results.disturbed.items())
            + "."
        )
    return "\n\n".join(paragraphs)


def _verdicts(results: Results) -> list[Verdict]:
    """The bars on undisturbed scenarios of this run."""
    names = {scenario.name for scenario in results.scenarios} - results.disturbed.keys() | {""}
    return judge(results, [b for b in BARS if {b.scenario, b.reference_scenario} <= names])


def _bars(results: Results) -> str:
    verdicts = _verdicts(results)
    rows = [[v.bar.name, v.bar.scenario, _bound(v.bar), _measured(v), _holds(v)] for v in verdicts]
    text = "### Bars\n\n" + table(["bar", "scenario", "bound", "measured", "holds"], rows)
    if left_out := len(BARS) - len(verdicts):
        text += f"\n\n{left_out} more bars are on scenarios that this run left out."
    return text


def _bound(bar: Bar) -> str:
    return f"at least {bar.factor:g} x" if bar.is_ratio else f"at most {bar.factor:g}"


def _measured(verdict: Verdict) -> str:
    if verdict.holds is None:
        return ""
    return f"{verdict.measured:.2f}" + (" x" if verdict.bar.is_ratio else "")


def _holds(verdict: Verdict) -> str:
    return {True: "yes", False: "**no**", None: "not measured"}[verdict.holds]


def _contenders(records: Sequence[Record]) -> str:
    rows = [
        [
            record.title,
            ", ".join(f"{name} {version}" for name, version in record.versions.items()),
            _number(median(record.ready_seconds), "{:.2f}"),
            _number(record.peak_rss_mb, "{:,.0f}"),
            _number(record.peak_worker_rss_mb, "{:,.0f}"),
            _number(median(record.idle_cores) * 100, "{:.1f} %"),
            _number(record.install_mb, "{:,.0f}"),
            str(record.lines_of_code) if record.kind in ("ours", "rival") else "",
        ]
        for record in records
    ]
    header = ["contender", "versions", "ready, s", "peak RSS, MB", "of its largest process, MB"]
    header += ["CPU when idle", "installed, MB", "lines to write"]
    return "### Contenders\n\n" + table(header, rows)


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) or (value == 0 and "%" not in form) else form.format(value)


def _family(results: Results, scenarios: Sequence[Scenario]) -> str:
    """A table with a row per contender, fastest first, and a column per load."""
    samples: dict[tuple[str, str], list[Sample]] = {}
    for sample in results.undisturbed():
        samples.setdefault((sample.contender, sample.scenario), []).append(sample)
    heaviest = scenarios[-1]

    def slowness(record: Record) -> float:
        rates = [s.requests_per_s for s in samples.get((record.name, heaviest.name), [])]
        return -median(rates) if rates else 0.0

    rows = []
    for record in sorted(results.contenders, key=slowness):
        cells = [
            _cell(samples.get((record.name, scenario.name), []), scenario) for scenario in scenarios
        ]
        if any(cells):
            rows.append([record.title, *cells])
    if not rows:
        return ""
    header = ["", *(scenario.load for scenario in scenarios)]
    return f"### {_title(heaviest)}\n\n" + table(header, rows)


def _secured_ratios(results: Results) -> list[tuple[Scenario, float, float]]:
    """Closed loops with the medians' ratios of rate and CPU time, with TLS and a key to without."""

    def medians(contender: str, scenario: Scenario) -> tuple[float, float]:
        samples = [
            sample
            for sample in results.undisturbed()
            if (sample.contender, sample.scenario) == (contender, scenario.name)
        ]
        return (
            median(sample.requests_per_s for sample in samples),
            median(sample.server_cpu_s_per_1000 for sample in samples),
        )

    ratios = []
    for scenario in results.scenarios:
        (rate, cpu), (plain_rate, plain_cpu) = (
            medians(contender.name, scenario) for contender in (OURS_SECURED, OURS)
        )
        if scenario.kind == "closed" and not math.isnan(rate / plain_rate) and plain_cpu:
            ratios.append((scenario, rate / plain_rate, cpu / plain_cpu))
    return ratios


def _secured(results: Results) -> str:
    """What TLS and an API key change, per scenario; empty for results without them."""
    rows = [
        [scenario.name, f"{rate:.2f}", f"{cpu:.2f}"]
        for scenario, rate, cpu in _secured_ratios(results)
    ]
    if not rows:
        return ""
    return "### This server with TLS and an API key, to without\n\n" + table(
        ["scenario", "requests/s", "CPU s per request"], rows
    )


def _title(scenario: Scenario) -> str:
    wire = WIRES[scenario.wire].title
    images = "one image" if scenario.images == 1 else f"{scenario.images} images"
    workers = f", {scenario.workers} workers" if scenario.workers > 1 else ""
    loop = ", open loop" if scenario.kind == "open" else ""
    return f"{wire}: {images} per request, model `{scenario.model}`{workers}{loop}"


def _cell(samples: Sequence[Sample], scenario: Scenario) -> str:
    """Requests/s, median latency / 99th percentile, CPU seconds per 1,000 requests."""
    if not samples:
        return ""
    rates = [sample.requests_per_s for sample in samples]
    lines = [
        f"{_rate(median(rates))}/s ±{spread(rates):.0%}",
        f"{_ms(s.p50_ms for s in samples)} / {_ms(s.p99_ms for s in samples)} ms",
        f"{median(s.server_cpu_s_per_1000 for s in samples):.3f} CPU s",
    ]
    if scenario.images > 1:
        lines.insert(1, f"{_rate(median(rates) * scenario.images)} images/s")
    if scenario.kind == "open":
        lines.append(f"sent late: {_ms(s.p99_lateness_ms for s in samples)} ms")
    if scenario.workers > 1:
        lines.append(f"generator: {median(s.generator_cores for s in samples):.2f} cores")
    return "<br>".join(lines)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ms(values: Iterable[float]) -> str:
    return f"{median(values):.3g}"


def _problems(records: Sequence[Record]) -> str:
    problems = [
        f"- {record.title}: {subject}: {_code(problem)}"
        for record in records
        for subject, problem in record.problems.items()
    ]
    notes = [f"- {record.title}: {record.note}." for record in records if record.note]
    notes += [
        f"- {record.title}: uses CPU while idle, so it was suspended while others were measured."
        for record in records
        if record.frozen_when_idle
    ]
    return "\n\n".join(
        f"### {title}\n\n" + "\n".join(lines)
        for title, lines in (("Not measured", problems), ("Notes", notes))
        if lines
    )


def _code(text: str) -> str:
    return "`" + text.replace("`", "'").replace("\n", " ") + "`"


def summary(results: Results, path: Path) -> str:
    """The summary for docs/performance.md of the results in a file below the root."""
    report = path.with_suffix(".md")
    parts = [
        f"![Requests per second of each contender]({PLOT.name})",
        _introduction(results),
        f"[All tables](../{report}), [all plots](../{path.with_suffix('.png')}), "
        f"[all samples](../{path}).",
    ]
    for model in dict.fromkeys(scenario.model for scenario in results.scenarios):
        suffix = "" if model == "fast" else f"-{model}"
        names = [name + suffix for name in _SUMMARY]
        scenarios = [scenario for scenario in results.scenarios if scenario.name in names]
        rows = [
            [record.title, *cells]
            for record in results.contenders
            if any(cells := [_rate_of(results, record, scenario) for scenario in scenarios])
        ]
        parts.append(f"Requests per second, model `{model}`:")
        parts.append(table(["", *(_column(scenario) for scenario in scenarios)], rows))
    if ratios := _secured_ratios(results):
        rates = [rate for _, rate, _ in ratios]
        times = [cpu for _, _, cpu in ratios]
        parts.append(
            f"With TLS and an API key per request, this server reaches {min(rates):.2f} to "
            f"{max(rates):.2f} times its rate without (median {median(rates):.2f} of "
            f"{len(ratios)} scenarios), with {min(times):.2f} to {max(times):.2f} times the CPU "
            f"time per request (median {median(times):.2f})."
        )
    verdicts = _verdicts(results)
    missed = [verdict for verdict in verdicts if verdict.holds is False]
    parts.append(
        f"Of {len(verdicts)} performance targets, {len(verdicts) - len(missed)} hold. These do not:"
        if missed
        else f"All {len(verdicts)} performance targets hold."
    )
    if missed:
        rows = [[v.bar.name, v.bar.scenario, _bound(v.bar), _measured(v)] for v in missed]
        parts.append(table(["target", "scenario", "bound", "measured"], rows))
    return "\n\n".join(parts)


def _column(scenario: Scenario) -> str:
    images = f", {scenario.images} images" if scenario.images > 1 else ""
    return f"{scenario.wire}{images}, {scenario.load}"


def _rate_of(results: Results, record: Record, scenario: Scenario) -> str:
    rates = [
        sample.requests_per_s
        for sample in results.undisturbed()
        if (sample.contender, sample.scenario) == (record.name, scenario.name)
    ]
    return _rate(median(rates)) if rates else ""


def embed(document: str, name: str, text: str) -> str:
    """The document with a new block of results. Raises ValueError if it has none."""
    start = document.find(_BEGIN.split("{", maxsplit=1)[0])
    end = document.find(_END)
    if start < 0 or end < start:
        raise ValueError("The document has no block of results.")
    block = f"{_BEGIN.format(name=name)}\n\n{text.strip()}\n\n"
    return document[:start] + block + document[end:]


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the report of a file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving.report", description=__doc__
    )
    parser.add_argument("file", type=Path, help="a results file (JSON)")
    parser.add_argument("--docs", action="store_true", help="update docs/performance.md as well")
    options = parser.parse_args(arguments)
    text = build(options.file)
    if options.docs:
        results = read(options.file)
        path = options.file.resolve().relative_to(ROOT)
        document = DOCS.read_text(encoding="utf-8")
        DOCS.write_text(embed(document, str(path), summary(results, path)), encoding="utf-8")
        draw(results, PLOT, [each for each in results.scenarios if each.name in _PLOTTED], 2)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
