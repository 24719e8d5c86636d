"""mnist-train: from a recipe to a published model, with a run folder that records how it went."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from training.data.dataset import split
from training.data.sources import SOURCES, add_data_flags, load_data
from training.errors import InterruptedRunError, TrainingError, UsageError
from training.hardware import DEVICES, choose_device, computes_bf16, keep_freed_memory
from training.loop import train
from training.processes import Processes, is_first, joined, own_device
from training.publish.release import PRECISIONS, ReleasePlan, release, versions
from training.publish.repository import newest_version
from training.recipes.flags import add_recipe_flags, asked_knobs, knob_named, recipe_of
from training.recipes.recipe import flag_of, to_json
from training.run import checkpoint
from training.run.folder import RunConfig, RunFolder
from training.run.progress import ProgressBar, say
from training.run.recorder import Recorder
from training.run.signals import Stopper
from training.state import EpochMetrics, Run, Trained, TrainingState, begin

_DEFAULT = "fast"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, evaluate, publish. Returns 0, 1 on failure, 2 on misuse, 128 + the signal's number."""
    try:
        _run(parser().parse_args(arguments))
    except InterruptedRunError as error:
        say(f"mnist-train: {error}")
        return 128 + error.signal_number
    except TrainingError as error:
        say(f"mnist-train: {error}")
        return error.exit_code
    return 0


def _run(options: argparse.Namespace) -> None:
    saved = _read_saved(options) if options.resume else None
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    device = own_device(choose_device(options.device or "auto"))
    weights = checkpoint.read(options.from_checkpoint) if options.from_checkpoint else None
    if origin := saved or weights:
        recipe, seed = origin.recipe, origin.seed
    else:
        recipe, seed = recipe_of(options, default=_DEFAULT), options.seed or 0

    data = load_data(options)
    name = options.model_name or data.name
    if options.unless_published and (newest := newest_version(options.models, name)):
        say(f"{newest} is published: nothing to train. To train again, remove --unless-published.")
        return
    if weights and weights.labels != data.labels:
        raise UsageError(
            f"{options.from_checkpoint} has the classes {', '.join(weights.labels)}, and the data "
            f"has {', '.join(data.labels)}; choose the data that it was trained on."
        )
    if saved and RunFolder(options.resume).read_config().data != data.sha256:
        raise UsageError(
            f"The run in {options.resume} was started with other data; choose that data."
        )

    run = Run(recipe=recipe, split=split(data, recipe), seed=seed, device=device)
    folder = _open_folder(options, run, saved) if is_first() else None
    if weights:
        trained = Trained(weights.network, weights.epoch)
    else:
        with joined(device) as processes, Stopper() as stopper:
            trained = _train(run, saved, folder, processes, stopper)
    if folder:
        plan = ReleasePlan(
            models=options.models,
            name=name,
            publish=not options.no_publish,
            also=tuple(dict.fromkeys(options.also)),
            force=options.force,
        )
        release(trained, run, folder, plan)


def _read_saved(options: argparse.Namespace) -> checkpoint.SavedRun:
    """Read the run to resume; its data, device and threads replace options that are not set."""
    fixed = ("recipe", "config", "seed", "from_checkpoint")
    extra = [f"--{name.replace('_', '-')}" for name in fixed if getattr(options, name) is not None]
    extra += [flag_of(knob_named(name)) for name in asked_knobs(options)]
    if extra:
        raise UsageError(f"--resume continues with the run's own options; remove {extra[0]}.")
    folder = RunFolder(options.resume)
    config, saved = folder.read_config(), checkpoint.read_run(folder.state)
    if not any(getattr(options, name) for name in SOURCES):
        for name in SOURCES:
            value = config.source[name]
            setattr(options, name, Path(value) if value and name != "dataset" else value)
    options.device = options.device or config.device
    options.threads = options.threads or config.threads
    return saved


def _open_folder(
    options: argparse.Namespace, run: Run, saved: checkpoint.SavedRun | None
) -> RunFolder:
    """Create the folder of a new run, or prepare that of a resumed one."""
    if saved:
        folder = RunFolder(options.resume)
        folder.epochs = saved.epochs
        folder.remove_leftovers()
        folder.write_metrics()
        return folder
    folder = RunFolder.create(options.runs, run.recipe.name)
    source = {name: getattr(options, name) for name in SOURCES}
    config = RunConfig(
        recipe=to_json(run.recipe),
        seed=run.seed,
        device=run.device.type,
        threads=torch.get_num_threads(),
        precision="bfloat16" if run.recipe.bf16 and computes_bf16(run.device) else "float32",
        source={k: str(v.resolve()) if isinstance(v, Path) else v for k, v in source.items()},
        data=run.split.data.sha256,
        versions=versions(),
    )
    folder.write_config(config)
    return folder


def _train(
    run: Run,
    saved: checkpoint.SavedRun | None,
    folder: RunFolder | None,
    processes: Processes,
    stopper: Stopper,
) -> Trained:
    """Train, and record it in `folder`, which only the first process has."""
    state = begin(run)
    if saved:
        state.restore(saved.counters, saved.tensors)
    if folder is None:
        finished = train(run, state, processes=processes, should_stop=stopper.requested)
    else:
        precision = ""
        if run.recipe.bf16:
            able = computes_bf16(run.device)
            precision = " in bfloat16" if able else " in float32, as it has no bfloat16"
        shared = f", with {processes.size} processes" if processes.size > 1 else ""
        say(
            f"Recipe {run.recipe.name} on {run.device}{precision}, seed {run.seed}{shared}; the "
            f"run is in {folder.path}."
        )
        with Recorder(run, folder) as recorder, ProgressBar(run, len(folder.epochs)) as progress:

            def end_epoch(state: TrainingState, metrics: EpochMetrics) -> None:
                recorder.epoch(state, metrics)
                progress.epoch(metrics)

            if not saved:
                recorder.save_state(state)  # so that the run can be resumed from its first second
            finished = train(
                run,
                state,
                processes=processes,
                on_step=progress.step,
                on_epoch=end_epoch,
                should_stop=stopper.requested,
            )
            if not finished:
                recorder.save_checkpoint(Trained(state.averaged, state.epoch))
    if not finished:
        # Under torchrun the signal may have reached another process only.
        number = stopper.signal_number or signal.SIGTERM
        raise InterruptedRunError(number, folder.checkpoint if folder else Path())
    return state.result()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command_line = argparse.ArgumentParser(
        prog="mnist-train",
        usage="%(prog)s [--recipe RECIPE] [--resume FOLDER] [--KNOB VALUE ...]",
        description="Train a classifier of small images and publish it as ONNX.",
        epilog="Flags of network, optimisation and images override the recipe.\n\n"
        "example:\n"
        "  mnist-train --recipe book --lr 0.01 --epochs 10 --no-publish",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    titles = ("run", "publishing", "network", "optimisation", "images")
    groups = {title: command_line.add_argument_group(title) for title in titles}
    add = groups["run"].add_argument
    add("-h", "--help", action="help", help="show this text and exit")
    add_data_flags(groups["images"])
    add_recipe_flags(groups, default=_DEFAULT)
    add("--seed", type=int, metavar="N", help="the same seed gives the same weights (default: 0)")
    add(
        "--runs",
        type=Path,
        default=Path("runs"),
        metavar="FOLDER",
        help="parent of run folders (default: runs)",
    )
    add(
        "--from-checkpoint",
        type=Path,
        metavar="FILE",
        help="evaluate and publish a checkpoint; do not train",
    )
    add("--resume", type=Path, metavar="FOLDER", help="continue a run that was stopped")
    add("--device", choices=DEVICES, help="default: auto, which is CUDA if available")
    add(
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="CPU threads (default: PyTorch's choice)",
    )
    add = groups["publishing"].add_argument
    add(
        "--models",
        type=Path,
        default=Path("models"),
        metavar="FOLDER",
        help="model repository (default: models)",
    )
    add(
        "--model-name",
        metavar="NAME",
        help="name to publish under (default: the name of the data set)",
    )
    add("--no-publish", action="store_true", help="train and evaluate only")
    add(
        "--unless-published",
        action="store_true",
        help="do nothing if the repository has a version of the model; for jobs that may be "
        "restarted",
    )
    add(
        "--also",
        nargs="+",
        metavar="|".join(PRECISIONS),
        choices=PRECISIONS,
        default=(),
        help="also export in 16 or 8 bits, measure it, and publish it as NAME-fp16 or NAME-int8",
    )
    add("--force", action="store_true", help="publish those even if they lose accuracy")
    return command_line


if __name__ == "__main__":
    status = main()
    if "WORLD_SIZE" in os.environ:
        # Started by torchrun. The threads of gloo outlive the process group (torch 2.14), and now
        # and then one of them aborts the process while Python ends, after everything is written.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
