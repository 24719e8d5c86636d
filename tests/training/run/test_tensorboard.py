"""The event file that TensorBoard reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.runs import epochs_of
from training.run.tensorboard import EventFile
from training.state import EpochMetrics


def metrics(epoch: int, loss: float) -> EpochMetrics:
    """Return metrics of an epoch with a given training loss."""
    return EpochMetrics(
        epoch=epoch,
        train_loss=loss,
        train_accuracy=0.5,
        learning_rate=0.1,
        images=100,
        seconds=1.0,
    )


def test_tensorboard_reads_the_metrics_of_each_epoch(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for tag, key in (("loss/train", "train_loss"), ("accuracy/validation", "validation_accuracy")):
        scalars = events.Scalars(tag)
        assert [scalar.step for scalar in scalars] == [1, 2]
        expected = [line[key] for line in epochs_of(run)]
        assert [scalar.value for scalar in scalars] == pytest.approx(expected)
    assert events.Scalars("images per second")[0].value > 100


def test_resumed_run_shows_each_epoch_once(tmp_path: Path) -> None:
    first = EventFile(tmp_path / "tensorboard", 0)
    for epoch in (1, 2, 3):
        first.add(metrics(epoch, loss=1.0))
    first.close()  # killed while the third was being saved: it will run again
    second = EventFile(tmp_path / "tensorboard", 2)
    for epoch in (3, 4):
        second.add(metrics(epoch, loss=0.5))
    second.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = [(scalar.step, scalar.value) for scalar in events.Scalars("loss/train")]
    assert scalars == [(1, 1.0), (2, 1.0), (3, 0.5), (4, 0.5)]


def test_full_disk_is_one_error(tmp_path: Path) -> None:
    script = (
        "import resource, sys, pathlib\n"
        "from training.run.tensorboard import EventFile\n"
        "from training.errors import TrainingError\n"
        "from training.state import EpochMetrics\n"
        "names = ('train_loss', 'train_accuracy', 'learning_rate', 'images', 'seconds')\n"
        "values = dict.fromkeys(names, 1.0)\n"
        "events = EventFile(pathlib.Path(sys.argv[1]), 0)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    for epoch in range(99): events.add(EpochMetrics(epoch=epoch, **values))\n"
        "except TrainingError as error: print(error)\n"
        "events.close()\n"
        # Coverage writes its data when the process ends.
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "x"], capture_output=True, text=True, check=True
    )
    assert "cannot be written" in done.stdout
    assert "Traceback" not in done.stderr
