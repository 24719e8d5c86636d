"""TensorBoard's view of a run: an event file with the figures of each epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.errors import TrainingError

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
    """The scalars of a run, for `tensorboard --logdir runs`; closed by leaving the context."""

    def __init__(self, folder: Path, epochs_before: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second; only runs that train need it

        self._folder = folder
        try:
            # What a killed process wrote of later epochs is purged: they are run again.
            self._writer = SummaryWriter(str(folder), purge_step=epochs_before + 1)
        except OSError as error:
            raise self._failure(error) from error

    def add(self, epoch: int, figures: Mapping[str, Any]) -> None:
        """Write the figures of an epoch. Raises TrainingError if there is no room for them."""
        try:
            for key, tag in _TAGS.items():
                if key in figures:
                    self._writer.add_scalar(tag, figures[key], epoch)
            self._writer.flush()
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Close the file; what cannot be written any more was reported by `add`."""
        try:
            self._writer.close()
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> TrainingError:
        return TrainingError(
            f"TensorBoard's events cannot be written in {self._folder}: {error.strerror}. The "
            "checkpoint of the run is unharmed."
        )
