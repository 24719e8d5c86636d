"""The tables of a file of engine measurements; measures nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.statistics import median


def write_report(path: Path) -> str:
    """Write FILE.md; the Markdown."""
    text = markdown(json.loads(path.read_text(encoding="utf-8")))
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    return text


def markdown(told: dict[str, Any]) -> str:
    """A table a model: the first configuration in figures, the others in multiples of its speed."""
    machine, plan = told["machine"], told["plan"]
    parts = [
        f"Measured {told['date']} at revision {machine['revision']} on {machine['cores']} cores of "
        f"{machine['cpu']}, ONNX Runtime {told['onnxruntime']}; load average before: "
        f"{machine['load_average_before'][0]:g}. Medians of {plan['rounds']} rounds; MB resident "
        f"in a process of its own, after loading and after {plan['runs_before_memory']} runs of "
        f"{max(plan['rows'])} rows (peak)."
    ]
    for model in dict.fromkeys(each["model"] for each in told["measured"]):
        rows = [str(count) for count in plan["rows"]]
        columns = ["", "load, ms", *(f"{_rows(count)}" for count in rows), "MB loaded", "MB used"]
        lines = [f"| {' | '.join(columns)} |", "| ---" + " | ---:" * (len(columns) - 1) + " |"]
        measured = [each for each in told["measured"] if each["model"] == model]
        for each in measured:
            speeds = [_speed(each, measured[0], count) for count in rows]
            cells = [
                each["configuration"],
                f"{median(each['load_ms']):.1f}",
                *speeds,
                f"{each['loaded_mb']:.0f}",
                f"{each['used_mb']:.0f} ({each['peak_mb']:.0f})",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        parts += [f"### Model `{model}`", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _rows(count: str) -> str:
    return f"{count} row" + ("" if count == "1" else "s")


def _speed(each: dict[str, Any], first: dict[str, Any], count: str) -> str:
    """Images/s of the first; of another its speed beside the first's, compared round by round."""
    own, base = each["seconds"][count], first["seconds"][count]
    if each is first:
        return f"{int(count) / median(own):,.0f} images/s"
    return f"{median(b / o for b, o in zip(base, own, strict=True)):.2f} x"
