"""The failures a person can do something about; each message says what happened and what to do.

Everything else is a bug and keeps its traceback.
"""

from pathlib import Path
from typing import ClassVar


class TrainingError(Exception):
    """The run failed; `mnist-train` prints the message alone and leaves with `exit_code`."""

    exit_code: ClassVar[int] = 1


class UsageError(TrainingError):
    """What was asked for cannot be done: a bad flag, a bad combination, a missing device."""

    exit_code = 2


class DataError(TrainingError):
    """A data file is missing, damaged or not what it should be."""


class CheckpointError(TrainingError):
    """A checkpoint file cannot be read or does not fit this code."""


class DivergedError(TrainingError):
    """The loss stopped being a number."""


class ExportError(TrainingError):
    """The exported graph is not what was promised; nothing was published."""


class InterruptedRunError(TrainingError):
    """A signal ended the run early; `checkpoint` holds the weights reached so far."""

    def __init__(self, signal_number: int, checkpoint: Path) -> None:
        super().__init__(
            f"The run was interrupted. The weights reached so far are in {checkpoint}; "
            f"go on with: mnist-train --resume {checkpoint.parent}, or evaluate and publish them "
            f"with: mnist-train --from-checkpoint {checkpoint}"
        )
        self.signal_number = signal_number
        self.checkpoint = checkpoint
