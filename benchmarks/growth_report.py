"""The tables and the plot of a file of growth curves; measures nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

_AXES = {
    "connections": ("connections", "requests/s"),
    "batch": ("images in a request", "images/s"),
    "body": ("bytes of a PNG, 16 connections", "requests/s"),
    "models": ("models loaded, 16 connections", "requests/s"),
    "requests": ("requests served", "MB resident"),
}
# Of the requests, after which memory must stay flat.
_WARM_UP_SHARE = 0.1


def write_report(path: Path) -> str:
    """Write FILE.md and FILE.png; the Markdown."""
    told = json.loads(path.read_text(encoding="utf-8"))
    text = markdown(told)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    _draw(told, path.with_suffix(".png"))
    return text


def memory_growth(curve: dict[str, Any]) -> float:
    """MB that the resident set grew from the end of the warm-up to the end."""
    points = curve["points"]
    warm = points[-1]["x"] * _WARM_UP_SHARE
    first = next(point for point in points if point["x"] >= warm)
    return float(points[-1]["rss_mb"] - first["rss_mb"])


def markdown(told: dict[str, Any]) -> str:
    """A table a curve."""
    machine = told["machine"]
    parts = [
        f"Measured {told['date']} at revision {machine['revision']} on {machine['cores']} cores of "
        f"{machine['cpu']}; load average before: {machine['load_average_before'][0]:g}."
    ]
    for curve in told["curves"]:
        x, _ = _AXES[curve["name"]]
        parts.append(f"### {curve['contender']}, model `{curve['model']}`: {x}")
        if curve["name"] == "requests":
            last = curve["points"][-1]
            parts.append(
                f"{last['x']:,} requests; the resident set grew by {memory_growth(curve):+.1f} MB "
                f"after the first tenth, to {last['rss_mb']:,.0f} MB."
            )
            continue
        lines = [f"| {x} | requests/s | p50, ms | p99, ms | MB | ready, s | failed |"]
        lines.append("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        lines += [
            f"| {p['x']:,.0f} | {p['requests_per_s']:,.0f} | {p['p50_ms']:.3g} | "
            f"{p['p99_ms']:.3g} | {p['rss_mb']:,.0f} | "
            f"{format(p['ready_s'], '.2f') if p['ready_s'] else ''} | {p['failed']} |"
            for p in curve["points"]
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


_COLUMNS = 2


def _draw(told: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(curve["name"] for curve in told["curves"]))
    columns = min(len(names), _COLUMNS)
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(5.2 * columns, 3.8 * rows), layout="constrained")
    for index, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, index + 1)
        x_label, y_label = _AXES[name]
        latency = axes.twinx() if name != "requests" else None
        for curve in (each for each in told["curves"] if each["name"] == name):
            points = curve["points"]
            xs = [point["x"] for point in points]
            [line] = axes.plot(
                xs, [_y(name, point) for point in points], "o-", label=curve["contender"]
            )
            if latency is not None:
                p99 = [point["p99_ms"] for point in points]
                latency.plot(xs, p99, ":", color=line.get_color())
        if latency is not None:
            axes.set_xscale("log", base=2)
            latency.set_yscale("log")
            latency.set_ylabel("p99, ms (dotted)")
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.legend(fontsize=7)
    figure.savefig(path)


def _y(name: str, point: dict[str, Any]) -> float:
    if name == "requests":
        return float(point["rss_mb"])
    rate: float = point["requests_per_s"]
    return rate * point["x"] if name == "batch" else rate
