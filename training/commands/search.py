"""mnist-search: try many values of a few knobs, judge by the held-out images, keep the best.

The test set is never looked at. Processes, also on several machines, share one study folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from training.data.dataset import DataSet, split
from training.data.sources import add_data_flags, load_data
from training.errors import DivergedError, TrainingError, UsageError
from training.evaluation.metrics import logits_of, loss_and_accuracy
from training.files import write_atomically
from training.hardware import DEVICES, choose_device, keep_freed_memory
from training.loop import train
from training.recipes import recipe as recipes
from training.recipes.flags import (
    add_recipe_flags,
    asked_knobs,
    changes_from_named,
    recipe_of,
    write_config,
)
from training.recipes.recipe import Recipe, changed
from training.search.space import Varied, changes_of, describe, parse_varied
from training.search.study import SharedStudy
from training.state import TrainingState

_GRID_OF_THE_NOTES = ("lr=0.001,0.01,0.1", "batch_size=16,64,256")
_DEFAULT = "book"
_HELD_OUT = 5000  # for recipes that hold nothing out
BEST_FILE = "best.toml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Search. Returns 0, 1 on failure, 2 on misuse, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except TrainingError as error:
        print(f"mnist-search: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("mnist-search: stopped; the same command goes on.", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    space = tuple(parse_varied(text) for text in options.vary or _GRID_OF_THE_NOTES)
    recipe = _base_recipe(options, space)
    data = load_data(options)
    split(data, recipe)  # a validation size that does not fit is told now
    study = _study(options, recipe, space, data)
    if options.workers == 1:
        _work(options, recipe, space, data, study, options.seed)
    else:
        _work_together(options)
    _write_results(options, recipe, space, study)


def _base_recipe(options: argparse.Namespace, space: tuple[Varied, ...]) -> Recipe:
    recipe = recipe_of(options, default=_DEFAULT)
    names = [varied.name for varied in space]
    if len(set(names)) < len(names) or set(names) & set(asked_knobs(options)):
        raise UsageError("A knob is varied once, and then not given by its own flag.")
    if not recipe.validation_size:
        recipe = dataclasses.replace(recipe, validation_size=_HELD_OUT)
    return dataclasses.replace(recipe, report_test_each_epoch=False)


def _study(
    options: argparse.Namespace, recipe: Recipe, space: tuple[Varied, ...], data: DataSet
) -> SharedStudy:
    plan = {
        "recipe": recipes.to_json(recipe),
        "space": describe(space),
        "sampler": options.sampler,
        "seed": options.seed,
        "data": data.sha256,
    }
    return SharedStudy(
        options.study or Path("searches") / recipe.name,
        plan,
        space,
        sampler=options.sampler,
        trials=options.trials,
        prune=not options.no_prune,
    )


def _work_together(options: argparse.Namespace) -> None:
    """Run the workers as processes, and wait for all."""
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_work_alone, args=(options, index))
        for index in range(options.workers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise TrainingError("A worker failed; see above. The same command goes on with the rest.")


def _work_alone(options: argparse.Namespace, index: int) -> None:
    options.threads = options.threads or max(1, (os.cpu_count() or 1) // options.workers)
    space = tuple(parse_varied(text) for text in options.vary or _GRID_OF_THE_NOTES)
    recipe, data = _base_recipe(options, space), load_data(options)
    study = _study(options, recipe, space, data)
    try:
        _work(options, recipe, space, data, study, options.seed + 1000 * index)
    except KeyboardInterrupt:
        sys.exit(130)


def _work(
    options: argparse.Namespace,
    recipe: Recipe,
    space: tuple[Varied, ...],
    data: DataSet,
    study: SharedStudy,
    sampler_seed: int,
) -> None:
    """Take trials until there is none left."""
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    device = choose_device(options.device)
    while trial := study.take(sampler_seed):
        changes = {varied.name: varied.suggest(trial) for varied in space}
        started = time.perf_counter()
        try:
            chosen = changed(recipe, changes)
            trained = train(chosen, data, options.seed, device, _Pruner(trial))
        except optuna.TrialPruned:
            study.tell(trial, None, TrialState.PRUNED)
            outcome = "pruned"
        except DivergedError:
            trial.set_user_attr("diverged", value=True)
            study.tell(trial, None, TrialState.FAIL)
            outcome = "diverged"
        else:
            held_out = split(data, chosen)
            logits = logits_of(trained.network, held_out.validation_images, device)
            loss, accuracy = loss_and_accuracy(logits, held_out.validation_labels)
            trial.set_user_attr("validation_loss", loss)
            trial.set_user_attr("epochs", trained.epoch)
            study.tell(trial, accuracy, TrialState.COMPLETE)
            outcome = f"validation accuracy {accuracy:.2%}, loss {loss:.4f}"
        what = ", ".join(f"{name} {value}" for name, value in trial.params.items())
        seconds = time.perf_counter() - started
        print(f"trial {trial.number}: {what}: {outcome}, {seconds:.1f} s", file=sys.stderr)


class _Pruner:
    """Tells Optuna of each epoch, and ends the trials that it thinks hopeless."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial

    def begin(self, state: TrainingState) -> None:
        """Nothing is saved: a trial that is lost is tried again."""

    def step(self, epochs: float, images: int, loss: float, accuracy: float) -> None:
        """Nothing is shown within an epoch."""

    def epoch(self, state: TrainingState, figures: dict[str, Any]) -> None:
        self._trial.report(figures["validation_accuracy"], state.epoch)
        if self._trial.should_prune():
            raise optuna.TrialPruned

    def stopping(self) -> bool:
        return False


def _write_results(
    options: argparse.Namespace, recipe: Recipe, space: tuple[Varied, ...], study: SharedStudy
) -> None:
    folder = options.study or Path("searches") / recipe.name
    finished = study.finished()
    _print_table(space, finished)
    rows = [
        {
            "trial": trial.number,
            **recipes.to_json_values(changes_of(space, trial.params)),
            "outcome": _outcome(trial),
            "validation_accuracy": trial.value if trial.state == TrialState.COMPLETE else None,
            "validation_loss": trial.user_attrs.get("validation_loss"),
        }
        for trial in finished
    ]
    files = {"trials.json": json.dumps(rows, indent=2).encode() + b"\n"}
    complete = [trial for trial in finished if trial.state == TrialState.COMPLETE]
    if complete:
        best = complete[0]
        comment = (
            f"Trial {best.number} of {folder}: validation accuracy {best.value:.2%}, "
            f"loss {best.user_attrs['validation_loss']:.4f}. Use it: mnist-train --config FILE"
        )
        changes = changes_from_named(recipe_of(options, default=_DEFAULT))
        changes |= changes_of(space, best.params)
        files[BEST_FILE] = write_config(recipe.name, changes, comment).encode()
    if len(space) == 2 and all(varied.choices for varied in space):
        files["heatmap.png"] = _heat_map(space, finished)
    try:
        for name, content in files.items():
            write_atomically(folder / name, content)
    except OSError as error:
        raise TrainingError(f"{folder} cannot be written: {error.strerror}.") from error
    if complete:
        print(f"The best: mnist-train --config {folder / BEST_FILE}", file=sys.stderr)
    else:
        raise TrainingError("No trial came to its end; see the table.")


def _outcome(trial: FrozenTrial) -> str:
    if trial.state == TrialState.COMPLETE:
        return "complete"
    return "diverged" if "diverged" in trial.user_attrs else "pruned"


def _print_table(space: tuple[Varied, ...], finished: list[FrozenTrial]) -> None:
    table = Table(title="Trials, the best first")
    for head in ("trial", *(varied.name for varied in space), "validation accuracy", "loss"):
        table.add_column(head, justify="right")
    for trial in finished:
        complete = trial.state == TrialState.COMPLETE
        table.add_row(
            str(trial.number),
            *(_short(trial.params[varied.name]) for varied in space),
            f"{trial.value:.2%}" if complete else _outcome(trial),
            f"{trial.user_attrs['validation_loss']:.4f}" if complete else "",
        )
    Console(soft_wrap=True).print(table)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _heat_map(space: tuple[Varied, ...], finished: list[FrozenTrial]) -> bytes:
    from training.run.plots import heat_map  # matplotlib takes a second

    rows, columns = space
    cells = {
        (trial.params[rows.name], trial.params[columns.name]): (
            trial.value if trial.state == TrialState.COMPLETE else _outcome(trial)
        )
        for trial in reversed(finished)
    }
    grid = [[cells.get((row, column)) for column in columns.choices] for row in rows.choices]
    return heat_map(grid, (rows.name, rows.choices), (columns.name, columns.choices))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mnist-search",
        description="Search for values of a recipe's knobs, judged on held-out images.",
    )
    add = parser.add_argument
    add(
        "--vary",
        action="append",
        metavar="KNOB=VALUES",
        help="lr=0.001,0.01,0.1 or, for tpe, lr=0.001:0.1; once for each knob; lists of numbers "
        f"as hidden=30+30,256 (default: {' and '.join(_GRID_OF_THE_NOTES)})",
    )
    add("--sampler", choices=("grid", "tpe"), default="grid", help="default: grid")
    add("--trials", type=int, default=20, help="how many in all, for tpe (default: 20)")
    add("--study", type=Path, metavar="FOLDER", help="default: searches/RECIPE; begun or gone on")
    add("--workers", type=int, default=1, help="processes to run here (default: 1)")
    add("--no-prune", action="store_true", help="run trials to their end that look hopeless")
    add("--seed", type=int, default=0, help="of every trial's training (default: 0)")
    add("--device", choices=DEVICES, default="auto", help="default: auto")
    add("--threads", type=int, default=0, help="CPU threads of a worker")
    add_data_flags(parser)
    add_recipe_flags(parser, default=_DEFAULT)
    return parser


if __name__ == "__main__":
    sys.exit(main())
