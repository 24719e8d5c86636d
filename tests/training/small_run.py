"""Runs of `mnist-train` inside this process, on few images: a second each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.commands.train import main


def train(root: Path, *arguments: str, status: int = 0) -> Path:
    """Run `mnist-train` with folders below `root`; the folder of the newest run there."""
    folders = ["--models", str(root / "models"), "--runs", str(root / "runs")]
    assert main([*folders, "--threads", "1", *arguments]) == status
    return max((root / "runs").iterdir(), key=lambda path: path.stat().st_mtime_ns)


def epochs_of(run: Path) -> list[dict[str, Any]]:
    """What the run wrote about each epoch."""
    return [json.loads(line) for line in (run / "metrics.jsonl").open()]


def evaluation_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    return found
