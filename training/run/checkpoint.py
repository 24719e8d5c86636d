"""Checkpoints: a network, or the state of a run to resume from, each in one file without pickle.

The format is safetensors. Whatever is not a tensor (recipe, seed, labels, ...) is in its metadata.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from training.data.dataset import DIGITS, output_count
from training.errors import CheckpointError
from training.files import write_atomically
from training.models import Classifier, Thresholds, build_network
from training.recipes.recipe import Recipe, from_json, to_json
from training.state import Counters, EpochMetrics

_FORMAT = "mnist-service checkpoint 7"
_STATE_FORMAT = "mnist-service state 5"


class Checkpoint(NamedTuple):
    """A network after `epoch` epochs, with the recipe, seed and classes of its training."""

    network: nn.Sequential
    recipe: Recipe
    seed: int
    epoch: int
    temperature: float = 1.0
    labels: tuple[str, ...] = DIGITS
    thresholds: Thresholds | None = None


class SavedRun(NamedTuple):
    """A run between two epochs: what determines how it continues, and its metrics so far."""

    recipe: Recipe
    seed: int
    epochs: list[EpochMetrics]
    counters: Counters
    tensors: dict[str, Tensor]  # of TrainingState


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; readers see the old file or the whole new one. Raises CheckpointError."""
    tensors = {name: value.contiguous() for name, value in checkpoint.network.state_dict().items()}
    fields = {
        "format": _FORMAT,
        "recipe": to_json(checkpoint.recipe),
        "seed": checkpoint.seed,
        "epoch": checkpoint.epoch,
        "temperature": checkpoint.temperature,
        "labels": checkpoint.labels,
        "thresholds": checkpoint.thresholds,
    }
    _write(path, tensors, fields)


def read(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises CheckpointError, naming the file, if it is damaged or missing."""
    fields, tensors = _read(path, _FORMAT)
    try:
        recipe, labels = from_json(fields["recipe"]), tuple(fields["labels"])
        network = build_network(recipe, output_count(recipe, labels))
        network.load_state_dict(tensors)
        thresholds = fields["thresholds"]
        return Checkpoint(
            network=network,
            recipe=recipe,
            seed=int(fields["seed"]),
            epoch=int(fields["epoch"]),
            temperature=float(fields["temperature"]),
            labels=labels,
            thresholds=Thresholds(*map(float, thresholds)) if thresholds else None,
        )
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def load(path: Path) -> Classifier:
    """Load a checkpoint for use: uint8 [N,28,28] -> the outputs of `Classifier`."""
    return classifier_of(read(path))


def classifier_of(checkpoint: Checkpoint) -> Classifier:
    """Return the classifier that is exported of a checkpoint."""
    return Classifier(
        checkpoint.network,
        checkpoint.temperature,
        classes=len(checkpoint.labels),
        thresholds=checkpoint.thresholds,
    ).eval()


def save_run(path: Path, saved: SavedRun) -> None:
    """Write the state of a run, atomically as `save` does. Raises CheckpointError."""
    fields = {
        "format": _STATE_FORMAT,
        "recipe": to_json(saved.recipe),
        "seed": saved.seed,
        "epochs": [metrics.to_json() for metrics in saved.epochs],
        "numbers": saved.counters._asdict(),
    }
    _write(path, saved.tensors, fields)


def read_run(path: Path) -> SavedRun:
    """Read the state of a run. Raises CheckpointError, naming the file, as `read` does."""
    fields, tensors = _read(path, _STATE_FORMAT)
    try:
        return SavedRun(
            recipe=from_json(fields["recipe"]),
            seed=int(fields["seed"]),
            epochs=[EpochMetrics(**metrics) for metrics in fields["epochs"]],
            counters=Counters(**fields["numbers"]),
            tensors=tensors,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _write(path: Path, tensors: dict[str, Tensor], fields: dict[str, Any]) -> None:
    # One key: safetensors keeps metadata in a hash map, whose order varies from run to run.
    metadata = {"checkpoint": json.dumps(fields)}
    try:
        write_atomically(path, save_tensors(tensors, metadata))
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be written: {error.strerror}. An earlier checkpoint of "
            f"that name is unharmed: make room, then run mnist-train --resume {path.parent}"
        ) from error


def _read(path: Path, expected: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        content = path.read_bytes()
        with safetensors.safe_open(path, framework="pt") as file:
            fields = json.loads((file.metadata() or {})["checkpoint"])
        if fields["format"] != expected:
            raise CheckpointError(f"{path} has the format {fields['format']!r}, not {expected!r}.")
        return fields, load_tensors(content)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except (safetensors.SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is not a checkpoint of mnist-train, or is damaged ({error}).")
