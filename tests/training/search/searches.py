"""What tests of searches share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SMALL = [
    *("--recipe", "book-30-30", "--epochs", "2", "--train-limit", "300", "--threads", "1"),
    *("--validation-size", "500"),
]


def trials_of(study: Path) -> list[dict[str, Any]]:
    """Return trials.json."""
    trials: list[dict[str, Any]] = json.loads((study / "trials.json").read_text())
    return trials
