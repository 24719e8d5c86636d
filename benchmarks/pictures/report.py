"""The tables of the benchmark of pictures."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from benchmarks.markdown import table
from benchmarks.paths import ROOT
from benchmarks.pictures.results import Bar, Pictures, read
from service.core.digits import REASONS

MARKER = "<!-- The rest is written by python -m benchmarks.pictures --docs. -->"


def write_report(path: Path) -> str:
    """Write FILE.md; returns its text."""
    text = markdown(read(path))
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    return text


def write_docs(path: Path, page: Path = ROOT / "docs" / "pictures.md") -> None:
    """Put the tables of a results file at the end of the page, below its marker."""
    begin, marker, _ = page.read_text(encoding="utf-8").partition(MARKER)
    page.write_text(f"{begin}{marker}\n\n{markdown(read(path))}", encoding="utf-8")


def markdown(results: Pictures) -> str:
    """Every bar with its bound and value, then kinds, reasons and coverage."""
    machine, plan = results.machine, results.plan
    broken = [bar for bar in results.bars if not bar.holds]
    parts = [
        f"Measured {results.date} at revision {machine.revision} on {machine.cores} cores of "
        f"{machine.cpu} in {results.seconds:.0f} s; load average before: "
        f"{machine.load_average_before[0]:g}. Models: {', '.join(results.models)}; figures are "
        f"their means. {plan.digits} digits of each kind, {plan.outliers} of each outlier, "
        f"{plan.numbers} numbers, seed {plan.seed}.",
        f"{len(results.bars) - len(broken)} of {len(results.bars)} bars hold.",
        "\n".join(
            [f"- Does not hold: {bar.part}: {bar.name}." for bar in broken]
            + [f"- Not measured: {line}" for line in results.not_measured]
        ),
        table(["", "bound", "measured", "each model", "holds"], map(_row, results.bars)),
        "### Pictures of digits",
        table(
            ["kind", "right, %", "not accepted, %", "accepted and right, %"],
            (
                [
                    kind.name,
                    f"{fmean(kind.accuracy):.2f}",
                    f"{fmean(kind.not_accepted):.2f}",
                    f"{fmean(kind.accepted_and_right):.2f}",
                ]
                for kind in results.kinds
            ),
        ),
        "### Outliers by reason, %",
        table(
            ["", "accepted", *REASONS[1:]],
            (
                [name, *(f"{shares[reason]:.1f}" for reason in REASONS)]
                for name, shares in results.reasons.items()
            ),
        ),
        "### Prediction sets",
        table(
            ["", *map(str, range(10)), "digits per set"],
            (
                [model, *(f"{value:.2f}" for value in coverage), f"{size:.3f}"]
                for model, coverage, size in zip(
                    results.models, results.coverage_by_digit, results.set_size, strict=True
                )
            ),
        ),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _row(bar: Bar) -> list[str]:
    sign = "<=" if bar.at_most else ">="
    each = ", ".join(f"{value:.2f}" for value in bar.values)
    return [
        f"{bar.part}: {bar.name}",
        f"{sign} {bar.bound:g} {bar.unit}",
        f"{bar.value:.2f} {bar.unit}",
        each,
        "yes" if bar.holds else "NO",
    ]
