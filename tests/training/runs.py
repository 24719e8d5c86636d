"""Runs of `mnist-train` for tests: in this process, as a process, and interrupted."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from training.commands.train import main
from training.data.dataset import split
from training.data.mnist import load_mnist
from training.recipes.recipe import Recipe
from training.state import Run, TrainingState, begin

# A recipe with everything that has state: momentum of AdamW, EMA weights, batch normalisation,
# dropout, augmentation, the best epoch so far.
STATEFUL = [
    *("--recipe", "fast", "--channels", "4,8", "--hidden", "16", "--dropout", "0.2"),
    *("--patience", "9", "--epochs", "8", "--train-limit", "3000", "--batch-size", "50"),
    *("--validation-size", "500", "--threads", "1", "--no-publish"),
]


class FastRun(NamedTuple):
    """A full run of the default recipe."""

    run_dir: Path
    model_dir: Path  # of the published version
    output: str


def train(root: Path, *arguments: str, status: int = 0) -> Path:
    """Run `mnist-train` in this process; returns the newest run folder below `root`."""
    folders = ["--models", str(root / "models"), "--runs", str(root / "runs")]
    assert main([*folders, "--threads", "1", *arguments]) == status
    return max((root / "runs").iterdir(), key=lambda path: path.stat().st_mtime_ns)


def command(root: Path, *arguments: str) -> list[str]:
    """Return the command line of `mnist-train` with folders below `root`."""
    folders = ["--models", str(root / "models"), "--runs", str(root / "runs")]
    return [sys.executable, "-m", "training.commands.train", *folders, *arguments]


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `mnist-train` as a process."""
    return subprocess.run(command(root, *arguments), capture_output=True, text=True, check=False)


def kill_in_epoch(
    root: Path, number: int, arguments: list[str], kind: signal.Signals
) -> tuple[Path, str]:
    """Start a run and send it a signal during an epoch; returns its folder and last output."""
    with subprocess.Popen(command(root, *arguments), stderr=subprocess.PIPE, text=True) as job:
        assert job.stderr is not None
        while f"epoch  {number - 1}/" not in (line := job.stderr.readline()):
            assert line, "the run ended by itself"
        job.send_signal(kind)
        words = job.stderr.read()
    return only_run(root), words


def fast_run_of(tree: Path, output: str, root: Path) -> FastRun:
    """Return the run of `make run` in `tree`; its model is copied below `root`."""
    model_dir = root / "models" / "mnist" / "1"
    shutil.copytree(max((tree / "models" / "mnist").iterdir()), model_dir)
    return FastRun(only_run(tree), model_dir, output)


def begin_on_mnist(recipe: Recipe, seed: int = 0) -> TrainingState:
    """Return the state that a run of a recipe on MNIST begins with."""
    mnist = split(load_mnist(), recipe)
    return begin(Run(recipe=recipe, split=mnist, seed=seed, device=torch.device("cpu")))


def only_run(root: Path) -> Path:
    """Return the run folder below `root`, where only one run was started."""
    (folder,) = (root / "runs").iterdir()
    return folder


def epochs_of(folder: Path) -> list[dict[str, Any]]:
    """Return metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def evaluation_of(folder: Path) -> dict[str, Any]:
    """Return evaluation.json."""
    evaluation: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return evaluation
