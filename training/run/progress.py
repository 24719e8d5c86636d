"""Telling a person how a run goes: a live bar on a terminal, one line an epoch always."""

from __future__ import annotations

import math
import signal
import sys
import time
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from training.processes import is_first
from training.recipes.recipe import Recipe
from training.run import checkpoint
from training.run.folder import RunFolder
from training.run.tensorboard import EventFile
from training.state import Trained, TrainingState

_LABELS = {
    "train_loss": "training loss",
    "train_accuracy": "training accuracy",
    "validation_loss": "validation loss",
    "validation_accuracy": "validation accuracy",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
}


def say(text: str) -> None:
    """Tell the person at the terminal, or the log; once, however many processes there are."""
    if is_first():
        print(text, file=sys.stderr, flush=True)


class Stopper:
    """Takes SIGINT and SIGTERM while it is entered; a second signal leaves at once."""

    def __init__(self) -> None:
        self.signal_number = 0

    def __enter__(self) -> Stopper:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        signal.signal(number, signal.SIG_DFL)


class QuietWatcher:
    """Tells nobody: the watcher of the processes beside the first."""

    def __init__(self, stopper: Stopper) -> None:
        self._stopper = stopper

    def begin(self, state: TrainingState) -> None:
        """Write nothing."""

    def step(self, epochs: float, images: int, loss: float, accuracy: float) -> None:
        """Show nothing."""

    def epoch(self, state: TrainingState, figures: dict[str, Any]) -> None:
        """Write nothing."""

    def stopping(self) -> bool:
        """Whether a signal asked this process to stop; the others hear of it."""
        return bool(self._stopper.signal_number)


class RunWatcher:
    """Shows a run, and saves its checkpoints and figures after each epoch."""

    def __init__(
        self,
        recipe: Recipe,
        seed: int,
        labels: tuple[str, ...],
        images: int,
        folder: RunFolder,
        stopper: Stopper,
    ) -> None:
        self._stopper = stopper
        self._recipe = recipe
        self._labels = labels
        self._seed = seed
        self._images = images
        self._folder = folder
        self._epoch_started = time.perf_counter()
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/" + str(recipe.epochs)),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %  loss {task.fields[loss]:.4f}"),
            TextColumn("accuracy {task.fields[accuracy]:.2%}"),
            TextColumn("{task.fields[rate]:,.0f} images/s"),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        )

    def __enter__(self) -> RunWatcher:
        self._events = EventFile(self._folder.events, len(self._folder.epochs))
        self._progress.start()
        self._task = self._progress.add_task(
            "",
            total=self._recipe.epochs,
            completed=len(self._folder.epochs),
            epoch=len(self._folder.epochs) + 1,
            loss=math.nan,
            accuracy=math.nan,
            rate=0,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        self._events.close()

    def stopping(self) -> bool:
        """Whether a signal asked to stop."""
        return bool(self._stopper.signal_number)

    def begin(self, state: TrainingState) -> None:
        """Save a run that has not begun, so that it can be resumed from its first second."""
        self._save_run(state)

    def step(self, epochs: float, images: int, loss: float, accuracy: float) -> None:
        """Move the bar."""
        rate = images / (time.perf_counter() - self._epoch_started)
        epoch = math.ceil(epochs)
        self._progress.update(
            self._task, completed=epochs, epoch=epoch, loss=loss, accuracy=accuracy, rate=rate
        )

    def epoch(self, state: TrainingState, figures: dict[str, Any]) -> None:
        """Save, record and print one line."""
        self._folder.epochs.append(figures)
        self._save_run(state)
        self.save(state.result())
        self._folder.write_metrics()
        parts = [
            f"{label} {figures[key]:.2%}" if "accuracy" in key else f"{label} {figures[key]:.4f}"
            for key, label in _LABELS.items()
            if key in figures
        ]
        line = f"epoch {figures['epoch']:>2}/{self._recipe.epochs}: {', '.join(parts)}"
        if figures["images"] < self._images:
            line += f", {figures['images']:,} of {self._images:,} images"
        rate = figures["images"] / max(figures["seconds"], 1e-9)
        self._epoch_started = time.perf_counter()
        self._events.add(figures["epoch"], figures | {"images_per_second": rate})
        self._progress.console.print(
            f"{line}, {figures['seconds']:.1f} s, {rate:,.0f} images/s",
            highlight=False,
            soft_wrap=True,
        )

    def save(self, trained: Trained) -> None:
        """Write the checkpoint of the run: weights to use."""
        found = checkpoint.Checkpoint(
            trained.network, self._recipe, self._seed, trained.epoch, labels=self._labels
        )
        checkpoint.save(self._folder.checkpoint, found)

    def _save_run(self, state: TrainingState) -> None:
        saved = checkpoint.Saved(
            self._recipe, self._seed, self._folder.epochs, state.numbers(), state.tensors()
        )
        checkpoint.save_run(self._folder.state, saved)
