"""A check and the place where it runs: on CUDA, or on the CPU to test the check itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Place(NamedTuple):
    """The device, `cuda` or `cpu`, and an empty folder. Its *.log files are kept."""

    device: str
    folder: Path

    @property
    def on_cuda(self) -> bool:
        return self.device == "cuda"


class Check(NamedTuple):
    """`run` returns a line to show, or raises; `seconds` is its time limit.

    `alone`: it measures time, so nothing runs beside it. `on_request`: it runs only if --only names
    it.
    """

    name: str
    run: Callable[[Place], str]
    seconds: float
    alone: bool = False
    on_request: bool = False
