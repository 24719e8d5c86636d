"""mnist-train: from a recipe to a published model, with a run folder that tells how it went."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from training.data.dataset import DataSet, split
from training.data.sources import SOURCES, add_data_flags, load_data
from training.errors import InterruptedRunError, TrainingError, UsageError
from training.hardware import DEVICES, choose_device, computes_bf16, keep_freed_memory
from training.loop import Interrupted, train
from training.processes import Processes, is_first, joined, own_device
from training.publish.release import PRECISIONS, ReleasePlan, release, versions
from training.publish.repository import newest_version
from training.recipes import recipe as recipes
from training.recipes.flags import add_recipe_flags, asked_knobs, knob_named, recipe_of
from training.recipes.recipe import Recipe
from training.run import checkpoint
from training.run.folder import RunFolder
from training.run.progress import QuietWatcher, RunWatcher, Stopper, say
from training.state import Trained

_DEFAULT = "fast"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, evaluate, publish. Returns 0, 1 on failure, 2 on misuse, 128 + the signal's number."""
    try:
        options = _parser().parse_args(arguments)
        _run(options)
    except InterruptedRunError as error:
        say(f"mnist-train: {error}")
        return 128 + error.signal_number
    except TrainingError as error:
        say(f"mnist-train: {error}")
        return error.exit_code
    return 0


def _run(options: argparse.Namespace) -> None:
    saved = _saved_run(options) if options.resume else None
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    device = own_device(choose_device(options.device or "auto"))
    found = checkpoint.read(options.from_checkpoint) if options.from_checkpoint else None
    if origin := saved or found:
        recipe, seed = origin.recipe, origin.seed
    else:
        recipe, seed = recipe_of(options, default=_DEFAULT), options.seed or 0
    data = load_data(options)
    name = options.model_name or data.name
    if options.unless_published and (there := newest_version(options.models, name)):
        say(f"{there} is published: nothing to train. Leave out --unless-published to train anew.")
        return
    _check_data(options, data, found)
    folder = _folder(options, recipe, seed, device, data, saved) if is_first() else None
    if found:
        trained = Trained(found.network, found.epoch)
    else:
        with joined(device) as processes, Stopper() as stopper:
            trained = _train(recipe, data, seed, device, folder, saved, processes, stopper)
    if folder:
        plan = ReleasePlan(
            options.models,
            name,
            publish=not options.no_publish,
            also=tuple(dict.fromkeys(options.also)),
            force=options.force,
        )
        release(trained, recipe, seed, data, folder, plan)


def _saved_run(options: argparse.Namespace) -> checkpoint.Saved:
    """Read the run to go on with, and take its data, device and threads where none are given."""
    fixed = ("recipe", "config", "seed", "from_checkpoint")
    asked = [f"--{n.replace('_', '-')}" for n in fixed if getattr(options, n) is not None]
    asked += [recipes.flag_of(knob_named(name)) for name in asked_knobs(options)]
    if asked:
        raise UsageError(f"--resume goes on with what the run began with; leave out {asked[0]}.")
    folder = RunFolder(options.resume)
    config, saved = folder.read_config(), checkpoint.read_run(folder.state)
    if not any(getattr(options, name) for name in SOURCES):
        for name in SOURCES:
            value = config["source"][name]
            setattr(options, name, Path(value) if value and name != "dataset" else value)
    options.device = options.device or config["device"]
    options.threads = options.threads or config["threads"]
    return saved


def _check_data(
    options: argparse.Namespace, data: DataSet, found: checkpoint.Checkpoint | None
) -> None:
    if found and found.labels != data.labels:
        raise UsageError(
            f"{options.from_checkpoint} tells {', '.join(found.labels)} apart, and the data has "
            f"{', '.join(data.labels)}; choose the data it was trained on."
        )
    if options.resume and RunFolder(options.resume).read_config()["data"] != data.sha256:
        raise UsageError(
            f"The data is not what the run in {options.resume} began with; give that data."
        )


def _folder(
    options: argparse.Namespace,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    data: DataSet,
    saved: checkpoint.Saved | None,
) -> RunFolder:
    if saved:
        folder = RunFolder(options.resume)
        folder.epochs = saved.epochs
        folder.remove_leftovers()
        folder.write_metrics()
        return folder
    folder = RunFolder.make(options.runs, recipe.name)
    source = {name: getattr(options, name) for name in SOURCES}
    source = {k: str(v.resolve()) if isinstance(v, Path) else v for k, v in source.items()}
    config = {
        "recipe": recipes.to_json(recipe),
        "seed": seed,
        "device": device.type,  # its number is for torchrun to give
        "threads": torch.get_num_threads(),
        "precision": "bfloat16" if recipe.bf16 and computes_bf16(device) else "float32",
        "source": source,
        "data": data.sha256,
        "versions": versions(),
    }
    folder.write_json(folder.config.name, config)
    return folder


def _train(
    recipe: Recipe,
    data: DataSet,
    seed: int,
    device: torch.device,
    folder: RunFolder | None,
    saved: checkpoint.Saved | None,
    processes: Processes,
    stopper: Stopper,
) -> Trained:
    try:
        if not folder:
            return train(recipe, data, seed, device, QuietWatcher(stopper), saved, processes)
        among = f", with {processes.size} processes" if processes.size > 1 else ""
        precision = ""
        if recipe.bf16:
            precision = (
                " in bfloat16" if computes_bf16(device) else " in float32 for want of bfloat16"
            )
        told = f"on {device}{precision}, seed {seed}{among}"
        say(f"Recipe {recipe.name} {told}; the run is in {folder.path}.")
        images = len(split(data, recipe).images)
        with RunWatcher(recipe, seed, data.labels, images, folder, stopper) as watcher:
            try:
                return train(recipe, data, seed, device, watcher, saved, processes)
            except Interrupted as stopped:
                watcher.save(stopped.reached)
                raise
    except Interrupted:
        # Under torchrun the signal may have been another process's.
        number = stopper.signal_number or signal.SIGTERM
        raise InterruptedRunError(number, folder.checkpoint if folder else Path()) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mnist-train", description="Train a classifier of small images and publish it as ONNX."
    )
    add = parser.add_argument
    add("--seed", type=int, help="the same seed gives the same weights (default: 0)")
    add("--models", type=Path, default=Path("models"), help="model repository (default: models)")
    add("--model-name", help="name to publish under (default: the data set's)")
    add("--runs", type=Path, default=Path("runs"), help="where run folders go (default: runs)")
    add("--no-publish", action="store_true", help="train and evaluate only")
    add(
        "--unless-published",
        action="store_true",
        help="do nothing where the repository has a version of the model: for jobs that may be "
        "started again",
    )
    add(
        "--also",
        nargs="+",
        choices=PRECISIONS,
        default=(),
        help="also export with smaller numbers, measure it, and publish it as NAME-fp16, NAME-int8",
    )
    add("--force", action="store_true", help="publish those even if they lose accuracy")
    add("--from-checkpoint", type=Path, help="evaluate and publish a checkpoint, train nothing")
    add("--resume", type=Path, metavar="RUN_FOLDER", help="go on with a run that was stopped")
    add("--device", choices=DEVICES, help="default: auto, CUDA where there is any")
    add("--threads", type=int, default=0, help="CPU threads (default: PyTorch's choice)")
    add_data_flags(parser)
    add_recipe_flags(parser, default=_DEFAULT)
    return parser


if __name__ == "__main__":
    sys.exit(main())
