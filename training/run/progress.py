"""The progress of a run on standard error: a live bar on a terminal, and one line per epoch."""

from __future__ import annotations

import math
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from training.loop import StepMetrics
from training.processes import is_first
from training.state import EpochMetrics, Run


def say(text: str) -> None:
    """Print a line on standard error, in the first process only."""
    if is_first():
        print(text, file=sys.stderr, flush=True)


class ProgressBar:
    """A bar that moves with each batch, and a line for each epoch that stays."""

    def __init__(self, run: Run, epochs_done: int) -> None:
        self._epochs = run.recipe.epochs
        self._images = len(run.split.images)
        self._epoch_started = time.perf_counter()
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/" + str(self._epochs)),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %  loss {task.fields[loss]:.4f}"),
            TextColumn("accuracy {task.fields[accuracy]:.2%}"),
            TextColumn("{task.fields[rate]:,.0f} images/s"),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self._task = self._progress.add_task(
            "",
            total=self._epochs,
            completed=epochs_done,
            epoch=epochs_done + 1,
            loss=math.nan,
            accuracy=math.nan,
            rate=0,
        )

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, metrics: StepMetrics) -> None:
        """Move the bar."""
        self._progress.update(
            self._task,
            completed=metrics.epochs,
            epoch=math.ceil(metrics.epochs),
            loss=metrics.loss,
            accuracy=metrics.accuracy,
            rate=metrics.images / (time.perf_counter() - self._epoch_started),
        )

    def epoch(self, metrics: EpochMetrics) -> None:
        """Print the line of an epoch."""
        parts = [
            f"training loss {metrics.train_loss:.4f}, "
            f"training accuracy {metrics.train_accuracy:.2%}"
        ]
        if metrics.validation_loss is not None:
            parts.append(f"validation loss {metrics.validation_loss:.4f}")
            parts.append(f"validation accuracy {metrics.validation_accuracy:.2%}")
        if metrics.test_loss is not None:
            parts.append(f"test loss {metrics.test_loss:.4f}")
            parts.append(f"test accuracy {metrics.test_accuracy:.2%}")
        if metrics.images < self._images:
            parts.append(f"{metrics.images:,} of {self._images:,} images")
        parts.append(f"{metrics.seconds:.1f} s, {metrics.images_per_second:,.0f} images/s")
        self._epoch_started = time.perf_counter()
        self._progress.console.print(
            f"epoch {metrics.epoch:>2}/{self._epochs}: {', '.join(parts)}",
            highlight=False,
            soft_wrap=True,
        )
