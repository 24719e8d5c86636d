"""The tables of an engine benchmark."""

from __future__ import annotations

from pathlib import Path

from benchmarks.engine.results import EngineResults, Measured, read
from benchmarks.markdown import table
from benchmarks.medians import median


def write_report(path: Path) -> str:
    """Write FILE.md and return its text."""
    text = markdown(read(path))
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    return text


def markdown(results: EngineResults) -> str:
    """A table per model: speed of the first configuration, and the others as multiples of it."""
    machine, plan = results.machine, results.plan
    parts = [
        f"Measured {results.date} at revision {machine.revision} on {machine.cores} cores of "
        f"{machine.cpu}, ONNX Runtime {results.onnxruntime}; load average before: "
        f"{machine.load_average_before[0]:g}. Medians of {plan.rounds} rounds. MB resident in a "
        f"separate process, after loading and after {plan.runs_before_memory} runs of "
        f"{max(plan.rows)} rows (peak)."
    ]
    rows_header = [f"{rows} row" + ("" if rows == 1 else "s") for rows in plan.rows]
    header = ["", "load, ms", *rows_header, "MB loaded", "MB used"]
    for model in dict.fromkeys(each.model for each in results.measured):
        measured = [each for each in results.measured if each.model == model]
        cells = [
            [
                each.configuration,
                f"{median(each.load_ms):.1f}",
                *(_speed(each, measured[0], rows) for rows in plan.rows),
                f"{each.loaded_mb:.0f}",
                f"{each.used_mb:.0f} ({each.peak_mb:.0f})",
            ]
            for each in measured
        ]
        parts += [f"### Model `{model}`", table(header, cells)]
    return "\n\n".join(parts) + "\n"


def _speed(each: Measured, first: Measured, rows: int) -> str:
    """Images/s of the first configuration; for others the median of the ratios per round."""
    own, base = each.seconds[rows], first.seconds[rows]
    if each is first:
        return f"{rows / median(own):,.0f} images/s"
    return f"{median(b / o for b, o in zip(base, own, strict=True)):.2f} x"
