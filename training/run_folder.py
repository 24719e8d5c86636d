"""The folder of one run: what was asked for, how it went, what came of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from training.errors import TrainingError
from training.files import write_atomically


class RunFolder:
    """runs/<time>-<recipe>/ with config.json, metrics.jsonl, checkpoint, curve and evaluation."""

    def __init__(self, root: Path, name: str) -> None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        try:
            root.mkdir(parents=True, exist_ok=True)
            self.path = _make_new(root, f"{stamp}-{name}")
        except OSError as error:
            raise TrainingError(
                f"No run folder can be made in {root}: {error.strerror}. Choose another --runs."
            ) from error
        self.checkpoint = self.path / "checkpoint.safetensors"
        self._metrics: list[dict[str, Any]] = []

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON file, atomically."""
        try:
            content = json.dumps(value, indent=2).encode()
            write_atomically(self.path / name, content + b"\n")
        except OSError as error:
            raise TrainingError(
                f"{self.path / name} cannot be written: {error.strerror}. The checkpoint in the "
                "same folder is unharmed."
            ) from error

    def add_epoch(self, figures: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl, and draw the curve anew."""
        self._metrics.append(figures)
        try:
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(figures) + "\n")
        except OSError as error:
            raise TrainingError(
                f"metrics.jsonl in {self.path} cannot be written: {error.strerror}."
            ) from error

    def draw_curve(self) -> None:
        """Draw the losses by epoch into loss.png."""
        if not self._metrics:
            return
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        epochs = [figures["epoch"] for figures in self._metrics]
        for key in ("train_loss", "validation_loss", "test_loss"):
            values = [float(figures[key]) for figures in self._metrics if key in figures]
            if values:
                axes.plot(epochs, values, marker=".", label=key.replace("_", " "))
        axes.set(xlabel="epoch", ylabel="cross-entropy (nats)", title=self.path.name)
        axes.set_yscale("log")
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
        figure.savefig(self.path / "loss.png", dpi=120)
        plt.close(figure)


def _make_new(root: Path, name: str) -> Path:
    for attempt in range(1, 1000):
        path = root / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise FileExistsError(17, "too many runs in this second", str(root))
