"""Checkpoints: weights and what is needed to rebuild the network, in one file without pickle.

The format is safetensors; the recipe, the seed, the epoch and the temperature are its metadata.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import safetensors
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from training import recipes
from training.data import DIGITS
from training.errors import CheckpointError
from training.files import write_atomically
from training.models import Classifier, build_network

_FORMAT = "mnist-service checkpoint 2"


class Checkpoint(NamedTuple):
    """A network with the recipe, seed and classes it was trained with, after so many epochs."""

    network: nn.Sequential
    recipe: recipes.Recipe
    seed: int
    epoch: int
    temperature: float = 1.0
    labels: tuple[str, ...] = DIGITS


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; readers see the old file or the whole new one. Raises CheckpointError."""
    state = {name: tensor.contiguous() for name, tensor in checkpoint.network.state_dict().items()}
    metadata = {
        # One key: safetensors keeps metadata in a hash map, whose order varies by run.
        "checkpoint": json.dumps(
            {
                "format": _FORMAT,
                "recipe": recipes.to_json(checkpoint.recipe),
                "seed": checkpoint.seed,
                "epoch": checkpoint.epoch,
                "temperature": checkpoint.temperature,
                "labels": checkpoint.labels,
            }
        )
    }
    try:
        write_atomically(path, save_tensors(state, metadata))
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be written: {error.strerror}. "
            "An earlier one in its place is unharmed; make room or choose another --runs."
        ) from error


def read(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises CheckpointError, naming the file, if it is not a whole one."""
    try:
        content = path.read_bytes()
        with safetensors.safe_open(path, framework="pt") as file:
            fields = json.loads((file.metadata() or {})["checkpoint"])
        if fields["format"] != _FORMAT:
            raise CheckpointError(f"{path} has the format {fields['format']!r}, not {_FORMAT!r}.")
        recipe = recipes.from_json(fields["recipe"])
        labels = tuple(fields["labels"])
        network = build_network(recipe, len(labels))
        network.load_state_dict(load_tensors(content))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except (safetensors.SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of mnist-train, or is damaged ({error})."
        ) from error
    seed, epoch, temperature = fields["seed"], fields["epoch"], float(fields["temperature"])
    return Checkpoint(network, recipe, int(seed), int(epoch), temperature, labels)


def load(path: Path) -> Classifier:
    """Load a checkpoint for use: uint8 [N,28,28] -> (logits, calibrated probabilities)."""
    found = read(path)
    classifier = Classifier(found.network, found.temperature)
    return classifier.eval()
