"""The folder of one run: its configuration, metrics, checkpoints, evaluation and report."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import TrainingError
from training.files import write_atomically
from training.state import EpochMetrics


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The content of config.json: what the run was asked for."""

    recipe: dict[str, Any]
    seed: int
    device: str  # cpu or cuda; torchrun assigns the index
    threads: int
    precision: str = "float32"  # of convolutions and products: bfloat16 or float32
    source: dict[str, str | None]  # the options that choose the data
    data: dict[str, str]  # SHA-256 of its files, by name
    versions: dict[str, str]


class RunFolder:
    """runs/<time>-<recipe>/ with config.json, metrics.jsonl, checkpoints, plots and evaluation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.checkpoint = path / "checkpoint.safetensors"
        self.state = path / "state.safetensors"
        self.events = path / "tensorboard"
        self.epochs: list[EpochMetrics] = []

    @classmethod
    def create(cls, root: Path, name: str) -> RunFolder:
        """Create a new folder in `root`. Raises TrainingError."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        try:
            root.mkdir(parents=True, exist_ok=True)
            for attempt in range(1, 1000):
                suffix = "" if attempt == 1 else f"-{attempt}"
                path = root / f"{stamp}-{name}{suffix}"
                try:
                    path.mkdir()
                except FileExistsError:
                    continue
                return cls(path)
            raise FileExistsError(17, "too many runs in this second", str(root))
        except OSError as error:
            raise TrainingError(
                f"No run folder can be made in {root}: {error.strerror}. Choose another --runs."
            ) from error

    def read_config(self) -> RunConfig:
        """Return the configuration. Raises TrainingError if this is not the folder of a run."""
        fields = {field.name for field in dataclasses.fields(RunConfig)}
        try:
            content = json.loads(self.config.read_bytes())
            return RunConfig(**{name: content[name] for name in fields & content.keys()})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise TrainingError(
                f"{self.path} is not the folder of a run: its config.json cannot be read ({error})."
            ) from error

    def write_config(self, config: RunConfig) -> None:
        """Write config.json. Raises TrainingError."""
        self.write_json(self.config.name, dataclasses.asdict(config))

    def write_metrics(self) -> None:
        """Write metrics.jsonl, one line per epoch. Raises TrainingError."""
        lines = "".join(json.dumps(metrics.to_json()) + "\n" for metrics in self.epochs)
        self.write("metrics.jsonl", lines.encode())

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON file, atomically. Raises TrainingError."""
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

    def remove_leftovers(self) -> None:
        """Remove the files that a killed process left half-written."""
        for path in self.path.glob(".*"):
            path.unlink(missing_ok=True)
