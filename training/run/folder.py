"""The folder of one run: what was asked for, how it went, what came of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from training.errors import TrainingError
from training.files import write_atomically


class RunFolder:
    """runs/<time>-<recipe>/ with config.json, metrics.jsonl, checkpoints, plots and evaluation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.checkpoint = path / "checkpoint.safetensors"
        self.state = path / "state.safetensors"
        self.events = path / "tensorboard"
        self.epochs: list[dict[str, Any]] = []

    @classmethod
    def make(cls, root: Path, name: str) -> RunFolder:
        """Make a new folder in `root`. Raises TrainingError if it cannot be made."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        try:
            root.mkdir(parents=True, exist_ok=True)
            return cls(_make_new(root, f"{stamp}-{name}"))
        except OSError as error:
            raise TrainingError(
                f"No run folder can be made in {root}: {error.strerror}. Choose another --runs."
            ) from error

    def read_config(self) -> dict[str, Any]:
        """Return what was asked for. Raises TrainingError if this is no run's folder."""
        try:
            found: dict[str, Any] = json.loads(self.config.read_bytes())
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"{self.path} is not the folder of a run: its config.json cannot be read ({error})."
            ) from error
        return found

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON file, atomically."""
        self.write(name, json.dumps(value, indent=2).encode() + b"\n")

    def write(self, name: str, content: bytes) -> None:
        """Write one file, atomically. Raises TrainingError."""
        try:
            write_atomically(self.path / name, content)
        except OSError as error:
            raise TrainingError(
                f"{self.path / name} cannot be written: {error.strerror}. The checkpoint in the "
                "same folder is unharmed."
            ) from error

    def write_metrics(self) -> None:
        """Write metrics.jsonl, a line an epoch."""
        lines = "".join(json.dumps(figures) + "\n" for figures in self.epochs)
        self.write("metrics.jsonl", lines.encode())

    def remove_leftovers(self) -> None:
        """Remove the files that a killed process had not finished writing."""
        for path in self.path.glob(".*"):
            path.unlink(missing_ok=True)


def _make_new(root: Path, name: str) -> Path:
    for attempt in range(1, 1000):
        path = root / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise FileExistsError(17, "too many runs in this second", str(root))
