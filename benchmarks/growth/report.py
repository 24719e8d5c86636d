"""The tables and the plot of a growth benchmark."""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks.growth.results import Curve, Growth, Point, read

_AXES = {
    "connections": ("connections", "requests/s"),
    "batch": ("images per request", "images/s"),
    "body": ("bytes of a PNG, 16 connections", "requests/s"),
    "models": ("models loaded, 16 connections", "requests/s"),
    "requests": ("requests served", "MB resident"),
}
# Share of the requests after which memory must stay flat.
_WARM_UP_SHARE = 0.1
_COLUMNS = 2


def write_report(path: Path) -> str:
    """Write FILE.md and FILE.png; returns the Markdown."""
    growth = read(path)
    text = markdown(growth)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    _draw(growth, path.with_suffix(".png"))
    return text


def memory_growth(curve: Curve) -> float:
    """Growth of the resident set in MB from the end of the warm-up to the end."""
    warm = curve.points[-1].x * _WARM_UP_SHARE
    first = next(point for point in curve.points if point.x >= warm)
    return curve.points[-1].rss_mb - first.rss_mb


def markdown(growth: Growth) -> str:
    """One table per curve."""
    machine = growth.machine
    parts = [
        f"Measured {growth.date} at revision {machine.revision} on {machine.cores} cores of "
        f"{machine.cpu}; load average before: {machine.load_average_before[0]:g}."
    ]
    for curve in growth.curves:
        x, _ = _AXES[curve.name]
        parts.append(f"### {curve.contender}, model `{curve.model}`: {x}")
        if curve.name == "requests":
            last = curve.points[-1]
            parts.append(
                f"{last.x:,.0f} requests; the resident set grew by {memory_growth(curve):+.1f} MB "
                f"after the first tenth, to {last.rss_mb:,.0f} MB."
            )
            continue
        lines = [f"| {x} | requests/s | p50, ms | p99, ms | MB | ready, s | failed |"]
        lines.append("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        lines += [
            f"| {point.x:,.0f} | {point.requests_per_s:,.0f} | {point.p50_ms:.3g} | "
            f"{point.p99_ms:.3g} | {point.rss_mb:,.0f} | "
            f"{format(point.ready_s, '.2f') if point.ready_s else ''} | {point.failed} |"
            for point in curve.points
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _draw(growth: Growth, path: Path) -> None:
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(curve.name for curve in growth.curves))
    columns = min(len(names), _COLUMNS)
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(5.2 * columns, 3.8 * rows), layout="constrained")
    for index, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, index + 1)
        x_label, y_label = _AXES[name]
        latency = axes.twinx() if name != "requests" else None
        for curve in (curve for curve in growth.curves if curve.name == name):
            xs = [point.x for point in curve.points]
            ys = [_y(name, point) for point in curve.points]
            [line] = axes.plot(xs, ys, "o-", label=curve.contender)
            if latency is not None:
                p99 = [point.p99_ms for point in curve.points]
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


def _y(name: str, point: Point) -> float:
    if name == "requests":
        return point.rss_mb
    return point.requests_per_s * point.x if name == "batch" else point.requests_per_s
