"""SIGINT and SIGTERM as a request to stop after the current batch."""

from __future__ import annotations

import signal
from types import FrameType


class Stopper:
    """Records a signal while it is entered; a second one ends the process at once."""

    def __init__(self) -> None:
        self.signal_number = 0

    def __enter__(self) -> Stopper:
        self._previous = {
            number: signal.signal(number, self._record)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return bool(self.signal_number)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        signal.signal(number, signal.SIG_DFL)
