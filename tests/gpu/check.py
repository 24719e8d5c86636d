"""What a check is, and where it runs: on CUDA, or on the CPU to try the check itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Place(NamedTuple):
    """The device, `cuda` or `cpu`, and an empty folder, whose *.log are kept."""

    device: str
    folder: Path

    @property
    def on_cuda(self) -> bool:
        return self.device == "cuda"


class Check(NamedTuple):
    """`run` gives figures to show, or raises.

    `alone`: it measures time. `asked`: it is run only where --only names it.
    """

    name: str
    run: Callable[[Place], str]
    seconds: float
    alone: bool = False
    asked: bool = False
