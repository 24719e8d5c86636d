"""The results of a search: a table, trials.json, best.toml and, for two lists, a heat map."""

from __future__ import annotations

import json
import sys
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from training.errors import TrainingError
from training.files import write_atomically
from training.recipes.flags import write_config
from training.recipes.recipe import to_json_values
from training.search.space import Search, Varied, changes_of

BEST_FILE = "best.toml"


def write_results(search: Search, trials: list[FrozenTrial], changes: dict[str, Any]) -> None:
    """Print and write the results. Raises TrainingError if that fails or no trial completed.

    `trials` are finished, the best first. `changes` are the knobs in which the search's recipe
    differs from the one that it is named for; best.toml has them and the best values.
    """
    _print_table(search.space, trials)
    rows = [
        {
            "trial": trial.number,
            **to_json_values(changes_of(search.space, trial.params)),
            "outcome": _outcome(trial),
            "validation_accuracy": trial.value if trial.state == TrialState.COMPLETE else None,
            "validation_loss": trial.user_attrs.get("validation_loss"),
        }
        for trial in trials
    ]
    files = {"trials.json": json.dumps(rows, indent=2).encode() + b"\n"}
    best = next((trial for trial in trials if trial.state == TrialState.COMPLETE), None)
    if best:
        comment = (
            f"Trial {best.number} of {search.folder}: validation accuracy {best.value:.2%}, "
            f"loss {best.user_attrs['validation_loss']:.4f}. Use it: mnist-train --config FILE"
        )
        knobs = changes | changes_of(search.space, best.params)
        files[BEST_FILE] = write_config(search.recipe.name, knobs, comment).encode()
    if len(search.space) == 2 and all(varied.choices for varied in search.space):
        files["heatmap.png"] = _heat_map(search.space, trials)
    try:
        for name, content in files.items():
            write_atomically(search.folder / name, content)
    except OSError as error:
        raise TrainingError(f"{search.folder} cannot be written: {error.strerror}.") from error
    if not best:
        raise TrainingError("No trial completed; see the table.")
    print(f"The best: mnist-train --config {search.folder / BEST_FILE}", file=sys.stderr)


def _outcome(trial: FrozenTrial) -> str:
    if trial.state == TrialState.COMPLETE:
        return "complete"
    return "diverged" if "diverged" in trial.user_attrs else "pruned"


def _print_table(space: tuple[Varied, ...], trials: list[FrozenTrial]) -> None:
    table = Table(title="Trials, the best first")
    for header in ("trial", *(varied.name for varied in space), "validation accuracy", "loss"):
        table.add_column(header, justify="right")
    for trial in trials:
        complete = trial.state == TrialState.COMPLETE
        values = [trial.params[varied.name] for varied in space]
        table.add_row(
            str(trial.number),
            *(f"{value:.3g}" if isinstance(value, float) else str(value) for value in values),
            f"{trial.value:.2%}" if complete else _outcome(trial),
            f"{trial.user_attrs['validation_loss']:.4f}" if complete else "",
        )
    Console(soft_wrap=True).print(table)


def _heat_map(space: tuple[Varied, ...], trials: list[FrozenTrial]) -> bytes:
    from training.run.plots import heat_map  # matplotlib takes a second

    rows, columns = space
    cells = {
        (trial.params[rows.name], trial.params[columns.name]): (
            trial.value if trial.state == TrialState.COMPLETE else _outcome(trial)
        )
        for trial in reversed(trials)
    }
    grid = [[cells.get((row, column)) for column in columns.choices] for row in rows.choices]
    return heat_map(grid, (rows.name, rows.choices), (columns.name, columns.choices))
