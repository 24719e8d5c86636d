"""The epochs of a training run, as `metrics.jsonl` and `pytorch_example` write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

GOAL = 0.99  # of the validation images


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch. `accuracy` is that of the validation images or, without any, the test images."""

    seconds: float
    accuracy: float
    images: int = 0  # that it trained on; 0 if the run does not say


def parse(lines: str) -> list[Epoch]:
    """The epochs of a text with one JSON object per line."""
    epochs = []
    for line in lines.splitlines():
        metrics = json.loads(line)
        accuracy = metrics.get("validation_accuracy", metrics.get("test_accuracy", 0.0))
        epochs.append(Epoch(metrics["seconds"], accuracy, metrics.get("images", 0)))
    return epochs


def seconds_to(goal: float, epochs: Sequence[Epoch]) -> float | None:
    """Seconds to the end of the first epoch with this accuracy; None if no epoch reaches it."""
    elapsed = 0.0
    for epoch in epochs:
        elapsed += epoch.seconds
        if epoch.accuracy >= goal:
            return elapsed
    return None
