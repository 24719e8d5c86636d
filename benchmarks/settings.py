"""The one home of what a benchmark run can be told, and of where its files lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
VENVS = FOLDER / ".venvs"
MODELS = FOLDER / ".models"
RESULTS = FOLDER / "results"


@dataclass(frozen=True, slots=True)
class Settings:
    """How one run goes. `contenders` and `scenarios` are shell patterns; empty means all."""

    contenders: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ()
    rounds: int = 5
    seconds: int = 5
    warm_up_seconds: int = 1
    # The longest that a contender may take from start to its first right answer.
    ready_within_seconds: float = 120.0
    idle_seconds: float = 2.0
    # A server that uses more than this share of a core with nobody asking is stopped (SIGSTOP)
    # while others are measured.
    idle_cores: float = 0.03
    # Largest difference of a probability from ONNX Runtime's own, in this process.
    tolerance: float = 1e-4
    # Largest share of failed requests in a sample that still counts.
    failed_share: float = 0.001
    # Rate of the open-loop scenario, as a share of the contender's own peak.
    open_loop_share: float = 0.5
    # Without, rivals that are not installed yet are left out, and said to be.
    install: bool = True
    results: Path = RESULTS

    def __post_init__(self) -> None:
        for name in ("rounds", "seconds", "warm_up_seconds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")


QUICK = Settings(scenarios=("raw-16", "json-16", "binary-16", "grpc-32"), rounds=1, seconds=2)
