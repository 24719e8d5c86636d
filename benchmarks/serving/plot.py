"""Plots of a run: requests/s of every contender, with a panel per scenario."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.medians import median
from benchmarks.serving.results import Results
from benchmarks.serving.scenarios import Scenario

_COLOURS = {"ours": "#d1495b", "floor": "#8d99ae", "limit": "#8d99ae", "rival": "#2b6777"}


def draw(results: Results, path: Path, scenarios: Sequence[Scenario], columns: int = 3) -> None:
    """Write a PNG with the scenarios that have valid samples, fastest contender on top."""
    from matplotlib.figure import Figure

    panels = [(scenario, rates) for scenario in scenarios if (rates := _rates(results, scenario))]
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(5.2 * columns, 1 + 3.1 * rows), layout="constrained")
    kinds = {record.name: record.kind for record in results.contenders}
    for index, (scenario, rates) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        names = sorted(rates, key=rates.__getitem__)
        values = [rates[name] for name in names]
        bars = axes.barh(names, values, color=[_COLOURS[kinds[name]] for name in names])
        axes.bar_label(bars, [f" {value:,.0f}" for value in values], fontsize=7)
        axes.set_xlim(0, max(values) * 1.2)
        axes.set_title(f"{scenario.name}: {scenario.load}", fontsize=9)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    title = f"Requests/s, medians; {results.date[:10]}, {results.machine.cpu}"
    disturbed = [scenario.name for scenario in scenarios if scenario.name in results.disturbed]
    if disturbed:
        title += f"\nleft out as disturbed: {', '.join(disturbed)}"
    figure.suptitle(title)
    figure.savefig(path)


def heaviest(results: Results) -> list[Scenario]:
    """The last scenario of each family."""
    return list({scenario.family: scenario for scenario in results.scenarios}.values())


def _rates(results: Results, scenario: Scenario) -> dict[str, float]:
    rates: dict[str, list[float]] = {}
    for sample in results.undisturbed():
        if sample.scenario == scenario.name:
            rates.setdefault(sample.contender, []).append(sample.requests_per_s)
    return {name: median(values) for name, values in rates.items()}
