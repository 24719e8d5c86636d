"""The scenarios: each is one load on one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from benchmarks.served_models import NAMES

BULK_IMAGES = 512


@dataclass(frozen=True, slots=True)
class Scenario:
    """One load.

    `closed` keeps connections x streams requests in flight; `open` sends at a constant rate.
    """

    name: str
    wire: str
    model: str
    connections: int = 1
    streams: int = 1
    images: int = 1
    workers: int = 1
    kind: Literal["closed", "open"] = "closed"

    @property
    def family(self) -> str:
        """Scenarios of one family differ only in the number of requests in flight."""
        workers = f"-{self.workers}w" if self.workers > 1 else ""
        kind = "open-" if self.kind == "open" else "bulk-" if self.images > 1 else ""
        return f"{kind}{self.wire}{workers}-{self.model}"

    @property
    def load(self) -> str:
        """The number of requests in flight, in words."""
        if self.kind == "open":
            return f"{self.connections} connections at half of its peak rate"
        streams = f" x {self.streams} streams" if self.streams > 1 else ""
        return f"{self.connections} connection{'s' if self.connections > 1 else ''}{streams}"


def _of_model(model: str) -> list[Scenario]:
    suffix = "" if model == "fast" else f"-{model}"
    scenarios = [
        Scenario(
            name=f"{wire}-{connections}{suffix}", wire=wire, model=model, connections=connections
        )
        for wire in ("raw", "json", "binary", "png")
        for connections in (1, 16, 64)
    ]
    scenarios += [
        Scenario(
            name=f"grpc-{name}{suffix}",
            wire="grpc",
            model=model,
            connections=connections,
            streams=streams,
        )
        for name, connections, streams in (("1", 1, 1), ("32", 1, 32), ("4x8", 4, 8))
    ]
    scenarios += [
        Scenario(f"bulk-{wire}{suffix}", wire, model, images=BULK_IMAGES)
        for wire in ("raw", "binary", "grpc")
    ]
    # After raw-64, whose peak sets the rate.
    scenarios.append(
        Scenario(name=f"open-raw{suffix}", wire="raw", model=model, connections=64, kind="open")
    )
    scenarios += [
        # Twice the workers need twice the requests in flight to form batches of the same size.
        Scenario(name=f"raw-128-2w{suffix}", wire="raw", model=model, connections=128, workers=2),
        # The kernel spreads connections by their addresses; of 4, one worker may get them all.
        Scenario(
            name=f"grpc-16x4-2w{suffix}",
            wire="grpc",
            model=model,
            connections=16,
            streams=4,
            workers=2,
        ),
    ]
    return scenarios


SCENARIOS: Sequence[Scenario] = [scenario for model in NAMES for scenario in _of_model(model)]


def matching(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name matches one of the shell patterns; without patterns, every name does."""
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
