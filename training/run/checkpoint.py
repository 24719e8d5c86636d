"""Checkpoints: a network, or a whole run to go on from, each in one file without pickle.

The format is safetensors; what is no tensor (recipe, seed, labels, ...) is its metadata.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from training.data.dataset import DIGITS
from training.errors import CheckpointError
from training.files import write_atomically
from training.models import Classifier, build_network
from training.recipes import recipe as recipes

_FORMAT = "mnist-service checkpoint 6"
_STATE_FORMAT = "mnist-service state 5"


class Checkpoint(NamedTuple):
    """A network with the recipe, seed and classes it was trained with, after so many epochs."""

    network: nn.Sequential
    recipe: recipes.Recipe
    seed: int
    epoch: int
    temperature: float = 1.0
    labels: tuple[str, ...] = DIGITS


class Saved(NamedTuple):
    """A run between two epochs: all that decides how it goes on, and what it told so far."""

    recipe: recipes.Recipe
    seed: int
    epochs: list[dict[str, Any]]  # the figures of each
    numbers: dict[str, Any]  # of TrainingState, as are the tensors
    tensors: dict[str, Tensor]


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; readers see the old file or the whole new one. Raises CheckpointError."""
    state = {name: tensor.contiguous() for name, tensor in checkpoint.network.state_dict().items()}
    fields = {
        "format": _FORMAT,
        "recipe": recipes.to_json(checkpoint.recipe),
        "seed": checkpoint.seed,
        "epoch": checkpoint.epoch,
        "temperature": checkpoint.temperature,
        "labels": checkpoint.labels,
    }
    _write(path, state, fields)


def read(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises CheckpointError, naming the file, if it is not a whole one."""
    fields, tensors = _read(path, _FORMAT)
    try:
        recipe, labels = recipes.from_json(fields["recipe"]), tuple(fields["labels"])
        network = build_network(recipe, len(labels))
        network.load_state_dict(tensors)
        seed, epoch, temperature = fields["seed"], fields["epoch"], float(fields["temperature"])
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error
    return Checkpoint(network, recipe, int(seed), int(epoch), temperature, labels)


def load(path: Path) -> Classifier:
    """Load a checkpoint for use: uint8 [N,28,28] -> (logits, calibrated probabilities)."""
    found = read(path)
    classifier = Classifier(found.network, found.temperature)
    return classifier.eval()


def save_run(path: Path, saved: Saved) -> None:
    """Write what `--resume` goes on from, as `save` does."""
    fields = {
        "format": _STATE_FORMAT,
        "recipe": recipes.to_json(saved.recipe),
        "seed": saved.seed,
        "epochs": saved.epochs,
        "numbers": saved.numbers,
    }
    _write(path, saved.tensors, fields)


def read_run(path: Path) -> Saved:
    """Read what `save_run` wrote. Raises CheckpointError, naming the file, if it is not whole."""
    fields, tensors = _read(path, _STATE_FORMAT)
    try:
        recipe = recipes.from_json(fields["recipe"])
        return Saved(recipe, int(fields["seed"]), fields["epochs"], fields["numbers"], tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _write(path: Path, tensors: dict[str, Tensor], fields: dict[str, Any]) -> None:
    # One key: safetensors keeps metadata in a hash map, whose order varies by run.
    metadata = {"checkpoint": json.dumps(fields)}
    try:
        write_atomically(path, save_tensors(tensors, metadata))
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be written: {error.strerror}. An earlier one in its "
            f"place is unharmed: make room, then go on with mnist-train --resume {path.parent}"
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
