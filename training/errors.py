"""The failures that a user can act on; each message says what happened and what to do next.

Any other exception is a bug and keeps its traceback.
"""

from pathlib import Path
from typing import ClassVar


class TrainingError(Exception):
    """The command failed; it prints the message without a traceback and exits with `exit_code`."""

    exit_code: ClassVar[int] = 1


class UsageError(TrainingError):
    """The request is impossible: a bad flag, a bad combination, a missing device."""

    exit_code = 2


class DataError(TrainingError):
    """A data file is missing, damaged or of another kind."""


class CheckpointError(TrainingError):
    """A checkpoint cannot be read or written, or has another format."""


class DivergedError(TrainingError):
    """The loss or a weight is no longer finite."""


class ExportError(TrainingError):
    """An export is not as specified, too inaccurate or cannot be published."""


class InterruptedRunError(TrainingError):
    """A signal stopped the run; `checkpoint` has the weights reached so far."""

    def __init__(self, signal_number: int, checkpoint: Path) -> None:
        super().__init__(
            f"The run was interrupted. The weights reached so far are in {checkpoint}. "
            f"To continue: mnist-train --resume {checkpoint.parent}. To evaluate and publish them: "
            f"mnist-train --from-checkpoint {checkpoint}"
        )
        self.signal_number = signal_number
