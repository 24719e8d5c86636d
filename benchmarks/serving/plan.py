"""Settings of one run of the main benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.paths import RESULTS


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure and for how long.

    `contenders` and `scenarios` are shell patterns; empty means all.
    """

    contenders: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ()
    rounds: int = 5
    seconds: int = 5
    warm_up_seconds: int = 1
    # Longest time from a contender's start to its first right answer.
    ready_within_seconds: float = 120.0
    idle_seconds: float = 2.0
    # A server that uses more than this share of a core while idle is suspended (SIGSTOP) while
    # others are measured.
    idle_cores: float = 0.03
    # Largest difference between a probability and the one that ONNX Runtime gives in this process.
    tolerance: float = 1e-4
    # Largest share of failed requests in a valid sample.
    failed_share: float = 0.001
    # Rate of the open loop, as a share of the contender's own peak.
    open_loop_share: float = 0.5
    # Whether to install missing rivals; otherwise they are left out and reported.
    install: bool = True
    results: Path = RESULTS

    def __post_init__(self) -> None:
        for name in ("rounds", "seconds", "warm_up_seconds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")


QUICK = Plan(scenarios=("raw-16", "json-16", "binary-16", "grpc-32"), rounds=1, seconds=2)
