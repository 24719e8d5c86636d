"""mnist-search: try values of some knobs of a recipe, judged on held-out images, and keep the best.

The test set is never used. Processes, also on several machines, share one study folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from training.data.dataset import split
from training.data.sources import add_data_flags, load_data
from training.errors import TrainingError, UsageError
from training.hardware import DEVICES, choose_device, keep_freed_memory
from training.recipes.flags import add_recipe_flags, asked_knobs, changes_from_named, recipe_of
from training.search.results import write_results
from training.search.space import Search, parse_varied
from training.search.study import SharedStudy
from training.search.trials import run_trials

_GRID_OF_THE_NOTES = ("lr=0.001,0.01,0.1", "batch_size=16,64,256")
_DEFAULT = "book"
_VALIDATION_SIZE = 5000  # for recipes without validation images


def main(arguments: Sequence[str] | None = None) -> int:
    """Search. Returns 0, 1 on failure, 2 on misuse, 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    try:
        search = _read_options(options)
        study = SharedStudy(search)
        if options.workers == 1:
            _work(options, search, study, options.seed)
        else:
            _start_workers(options)
        changes = changes_from_named(recipe_of(options, default=_DEFAULT))
        write_results(search, study.finished(), changes)
    except TrainingError as error:
        print(f"mnist-search: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("mnist-search: stopped. Run the same command to resume.", file=sys.stderr)
        return 130
    return 0


def _read_options(options: argparse.Namespace) -> Search:
    space = tuple(parse_varied(text) for text in options.vary or _GRID_OF_THE_NOTES)
    recipe = recipe_of(options, default=_DEFAULT)
    names = [varied.name for varied in space]
    if len(set(names)) < len(names) or set(names) & set(asked_knobs(options)):
        raise UsageError("Vary each knob once, and do not set it by its own flag as well.")
    if not recipe.validation_size:
        recipe = dataclasses.replace(recipe, validation_size=_VALIDATION_SIZE)
    recipe = dataclasses.replace(recipe, report_test_each_epoch=False)
    data = load_data(options)
    split(data, recipe)  # fails here, not in the first trial, if the validation size is too large
    return Search(
        recipe=recipe,
        space=space,
        data=data,
        seed=options.seed,
        folder=options.study or Path("searches") / recipe.name,
        sampler=options.sampler,
        trials=options.trials,
        prune=not options.no_prune,
    )


def _start_workers(options: argparse.Namespace) -> None:
    """Run the workers as processes, and wait for all of them."""
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_run_worker, args=(options, index))
        for index in range(options.workers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise TrainingError(
            "A worker failed; see its message above. Run the same command to try the rest."
        )


def _run_worker(options: argparse.Namespace, index: int) -> None:
    options.threads = options.threads or max(1, (os.cpu_count() or 1) // options.workers)
    search = _read_options(options)
    try:
        _work(options, search, SharedStudy(search), options.seed + 1000 * index)
    except KeyboardInterrupt:
        sys.exit(130)


def _work(
    options: argparse.Namespace, search: Search, study: SharedStudy, sampler_seed: int
) -> None:
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    run_trials(search, study, choose_device(options.device), sampler_seed)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command_line = argparse.ArgumentParser(
        prog="mnist-search",
        usage="%(prog)s [--vary KNOB=VALUES ...] [--study FOLDER] [--KNOB VALUE ...]",
        description="Search for values of a recipe's knobs, judged on held-out images.",
        epilog="Flags of network, optimisation and images override the recipe in all trials.\n\n"
        "example:\n"
        "  mnist-search --vary lr=0.001,0.01 --vary hidden=64,30+30 --epochs 5",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    titles = ("search", "run", "network", "optimisation", "images")
    groups = {title: command_line.add_argument_group(title) for title in titles}
    add = groups["search"].add_argument
    add("-h", "--help", action="help", help="show this text and exit")
    add(
        "--vary",
        action="append",
        metavar="KNOB=VALUES",
        help="lr=0.001,0.01,0.1 or, for tpe, lr=0.001:0.1; repeat it for each knob; write lists of "
        f"numbers as hidden=30+30,256 (default: {' and '.join(_GRID_OF_THE_NOTES)})",
    )
    add("--sampler", choices=("grid", "tpe"), default="grid", help="default: grid")
    add(
        "--trials", type=int, default=20, metavar="N", help="number of trials for tpe (default: 20)"
    )
    add(
        "--study",
        type=Path,
        metavar="FOLDER",
        help="folder of the study, created or resumed (default: searches/RECIPE)",
    )
    add(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes to run on this machine (default: 1)",
    )
    add("--no-prune", action="store_true", help="do not stop unpromising trials early")
    add_data_flags(groups["images"])
    add_recipe_flags(groups, default=_DEFAULT)
    add = groups["run"].add_argument
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of every trial's training (default: 0)",
    )
    add("--device", choices=DEVICES, default="auto", help="default: auto, CUDA if available")
    add("--threads", type=int, default=0, metavar="N", help="CPU threads per worker")
    return command_line


if __name__ == "__main__":
    sys.exit(main())
