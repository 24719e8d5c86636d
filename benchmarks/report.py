"""python -m benchmarks.report FILE: the Markdown and the plot of a results file.

Nothing is measured here: the same file gives the same report. With --docs the tables go into
docs/performance.md as well, which says no figure of its own.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.bars import BARS, Bar, Verdict, judge
from benchmarks.plot import draw
from benchmarks.results import Record, Results, Sample, read
from benchmarks.scenarios import Scenario
from benchmarks.settings import ROOT
from benchmarks.statistics import median, spread
from benchmarks.wire import WIRES

DOCS = ROOT / "docs" / "performance.md"
_BEGIN, _END = "<!-- results: {name} -->", "<!-- end of results -->"
_QUIET = 0.5  # load average before the run, above which it is said


def build(path: Path) -> str:
    """Write FILE.md and FILE.png; the Markdown."""
    results = read(path)
    text = markdown(results)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    draw(results, path.with_suffix(".png"))
    return text


def markdown(results: Results) -> str:
    """The whole report."""
    parts = [_head(results), _bars(results), _contenders(results.contenders)]
    families: dict[str, list[Scenario]] = {}
    for scenario in results.scenarios:
        families.setdefault(scenario.family, []).append(scenario)
    parts += [_family(results, scenarios) for scenarios in families.values()]
    parts.append(_problems(results.contenders))
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _head(results: Results) -> str:
    machine, settings = results.machine, results.settings
    lines = [
        f"Measured {results.date} at revision {machine['revision']} on {machine['cores']} cores of "
        f"{machine['cpu']}, {machine['memory_gb']} GB, {machine['system']}, "
        f"Python {machine['python']}; {machine['wrk'].split(' [')[0]}, h2load {machine['h2load']}. "
        f"Medians of {settings['rounds']} rounds of {settings['seconds']} seconds."
    ]
    before = machine["load_average_before"][0]
    if before > _QUIET:
        lines.append(
            f"**The machine was not quiet (load average {before:g} before the run): read ratios "
            "with care and rates not at all.**"
        )
    if not results.finished:
        lines.append("**The run was cut short: not everything was measured.**")
    return "\n\n".join(lines)


def _bars(results: Results) -> str:
    """The bars on scenarios of this run, and how many it says nothing of."""
    names = {scenario.name for scenario in results.scenarios} | {""}
    asked = [bar for bar in BARS if {bar.scenario, bar.reference_scenario} <= names]
    verdicts = judge(results, asked)
    rows = [[v.bar.name, v.bar.scenario, _wanted(v.bar), _measured(v), _holds(v)] for v in verdicts]
    text = "### Bars\n\n" + table(["bar", "scenario", "wanted", "measured", "holds"], rows)
    if left_out := len(BARS) - len(asked):
        text += f"\n\n{left_out} more bars are on scenarios that this run left out."
    return text


def _wanted(bar: Bar) -> str:
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
            _figure(median(record.ready_seconds), "{:.2f}"),
            _figure(record.peak_rss_mb, "{:,.0f}"),
            _figure(record.peak_worker_rss_mb, "{:,.0f}"),
            _figure(median(record.idle_cores) * 100, "{:.1f} %"),
            _figure(record.install_mb, "{:,.0f}"),
            str(record.lines_of_code) if record.kind in ("ours", "rival") else "",
        ]
        for record in records
    ]
    head = ["contender", "versions", "ready, s", "peak RSS, MB", "of its largest process, MB"]
    return "### Contenders\n\n" + table(
        [*head, "CPU when idle", "installed, MB", "lines to write"], rows
    )


def _figure(value: float, form: str) -> str:
    return "" if math.isnan(value) or (value == 0 and "%" not in form) else form.format(value)


def _family(results: Results, scenarios: Sequence[Scenario]) -> str:
    """One table: a row a contender, fastest first, and a column a load."""
    samples: dict[tuple[str, str], list[Sample]] = {}
    for sample in results.samples:
        samples.setdefault((sample.contender, sample.scenario), []).append(sample)
    last = scenarios[-1]

    def speed(record: Record) -> float:
        found = samples.get((record.name, last.name), [])
        return -median(each.requests_per_s for each in found) if found else 0.0

    rows = []
    for record in sorted(results.contenders, key=speed):
        cells = [
            _cell(samples.get((record.name, scenario.name), []), scenario) for scenario in scenarios
        ]
        if any(cells):
            rows.append([record.title, *cells])
    if not rows:
        return ""
    return f"### {_title(last)}\n\n" + table(["", *(scenario.load for scenario in scenarios)], rows)


def _title(scenario: Scenario) -> str:
    what = WIRES[scenario.wire].title
    images = "one image" if scenario.images == 1 else f"{scenario.images} images"
    workers = f", {scenario.workers} workers" if scenario.workers > 1 else ""
    loop = ", open loop" if scenario.kind == "open" else ""
    return f"{what}: {images} a request, model `{scenario.model}`{workers}{loop}"


def _cell(samples: Sequence[Sample], scenario: Scenario) -> str:
    """Requests/s, median latency / 99th percentile, CPU seconds."""
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
    lines = [
        f"- {record.title}: {what}: {_plain(problem)}"
        for record in records
        for what, problem in record.problems.items()
    ]
    notes = [f"- {record.title}: {record.note}." for record in records if record.note]
    notes += [
        f"- {record.title}: uses CPU when idle, so it was stopped while others were measured."
        for record in records
        if record.frozen_when_idle
    ]
    return "\n\n".join(
        f"### {title}\n\n" + "\n".join(each)
        for title, each in (("What could not be measured, and why", lines), ("Notes", notes))
        if each
    )


def _plain(text: str) -> str:
    return "`" + text.replace("`", "'").replace("\n", " ") + "`"


def embed(document: str, name: str, text: str) -> str:
    """The document with its results block replaced. Raises ValueError where it has none."""
    start = document.find(_BEGIN.split("{", maxsplit=1)[0])
    end = document.find(_END)
    if start < 0 or end < start:
        raise ValueError("The document has no block of results.")
    block = f"{_BEGIN.format(name=name)}\n\n{text.strip()}\n\n"
    return document[:start] + block + document[end:]


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the report of a file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("file", type=Path, help="a results file, JSON")
    parser.add_argument("--docs", action="store_true", help="put it into docs/performance.md too")
    given = parser.parse_args(arguments)
    text = build(given.file)
    if given.docs:
        path = given.file.resolve().relative_to(ROOT)
        DOCS.write_text(
            embed(DOCS.read_text(encoding="utf-8"), str(path), docs_text(path, text)),
            encoding="utf-8",
        )
    print(text)
    return 0


def docs_text(path: Path, text: str) -> str:
    """What docs/performance.md says of a results file (a path below the repository's root)."""
    plot = path.with_suffix(".png")
    picture = f"![Requests per second of each contender](../{plot})"
    return f"From [{path}](../{path}).\n\n{picture}\n\n{text}"


if __name__ == "__main__":
    sys.exit(main())
