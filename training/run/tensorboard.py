"""TensorBoard's view of a run: an event file with the metrics of each epoch.

It is written synchronously, with TensorBoard's own record writer. SummaryWriter writes in a thread,
where an error on a full disk cannot be caught.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from training.errors import TrainingError
from training.state import EpochMetrics

_TAGS = {
    "train_loss": "loss/train",
    "validation_loss": "loss/validation",
    "test_loss": "loss/test",
    "train_accuracy": "accuracy/train",
    "validation_accuracy": "accuracy/validation",
    "test_accuracy": "accuracy/test",
    "learning_rate": "learning rate",
    "images_per_second": "images per second",
}


class EventFile:
    """The scalars of a run, for `tensorboard --logdir runs`."""

    def __init__(self, folder: Path, epochs_before: int) -> None:
        """Start a file; it replaces what a killed process wrote about later epochs."""
        self._folder = folder
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        try:
            folder.mkdir(exist_ok=True)
            self._file = (folder / name).open("ab", buffering=0)
        except OSError as error:
            raise self._failure(error) from error
        self._writer = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._write(Event(step=epochs_before + 1, session_log=start))

    def add(self, metrics: EpochMetrics) -> None:
        """Write the metrics of an epoch. Raises TrainingError if the disk is full."""
        values = [
            Summary.Value(tag=tag, simple_value=value)
            for name, tag in _TAGS.items()
            if (value := getattr(metrics, name)) is not None
        ]
        self._write(Event(step=metrics.epoch, summary=Summary(value=values)))

    def close(self) -> None:
        """Close the file; nothing is buffered."""
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        try:
            self._writer.write(event.SerializeToString())
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> TrainingError:
        return TrainingError(
            f"TensorBoard's events cannot be written in {self._folder}: {error.strerror}. The "
            "checkpoint of the run is unharmed."
        )
