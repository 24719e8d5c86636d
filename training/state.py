"""One run of training: what determines it, what changes in it, and its metrics by epoch.

A run that resumes from the counters and tensors of a `TrainingState` continues bit for bit as if it
had never stopped: they hold the weights, their moving average, the best weights so far, the tensors
of the optimiser and the state of the random generator. Dropout draws from torch's global generator,
which the loop seeds at the start of each epoch, so its state is not needed.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from training.data.dataset import Split, output_count
from training.data.sampling import Sampler
from training.models import build_network
from training.recipes.recipe import Recipe


class Run(NamedTuple):
    """What determines the trained weights, together with the number of threads and processes."""

    recipe: Recipe
    split: Split
    seed: int
    device: torch.device


class Trained(NamedTuple):
    """The weights to use, and the number of epochs after which they were reached."""

    network: nn.Sequential
    epoch: int


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """One line of metrics.jsonl. Losses are means in nats, accuracies shares from 0 to 1."""

    epoch: int  # from 1
    train_loss: float  # without smoothing, distillation and penalties
    train_accuracy: float  # of augmented images, with dropout
    learning_rate: float  # of the last step
    images: int  # that the epoch trained on
    # None without validation images, without --report-test-each-epoch, and in all processes but
    # the first.
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Training images per second, the evaluation included."""
        return self.images / max(self.seconds, 1e-9)

    def to_json(self) -> dict[str, Any]:
        """Return the metrics that were measured, by name."""
        return {k: value for k, value in dataclasses.asdict(self).items() if value is not None}


class Counters(NamedTuple):
    """The part of a `TrainingState` that is not a tensor."""

    epoch: int
    step: int
    best_loss: float | None
    best_epoch: int


@dataclass
class TrainingState:
    """Everything that changes from step to step."""

    network: nn.Sequential
    averaged: nn.Sequential  # the EMA weights; `network` itself for recipes without them
    optimizer: torch.optim.Optimizer
    random: torch.Generator  # for the order of images and their augmentation
    sampler: Sampler
    epoch: int = 0  # completed
    step: int = 0
    best: nn.Sequential | None = None  # with early stopping only
    best_loss: float = math.inf
    best_epoch: int = 0

    def result(self) -> Trained:
        """Return the best weights on validation with early stopping, else the last or averaged."""
        if self.best is not None:
            return Trained(self.best, self.best_epoch)
        return Trained(self.averaged, self.epoch)

    def keep_if_best(self, loss: float) -> None:
        """Copy the weights of this epoch if no epoch had a lower validation loss."""
        if loss < self.best_loss:
            self.best = copy.deepcopy(self.averaged)
            self.best_loss, self.best_epoch = loss, self.epoch

    def counters(self) -> Counters:
        """Return the part that is not a tensor."""
        best_loss = self.best_loss if self.best else None
        return Counters(
            epoch=self.epoch, step=self.step, best_loss=best_loss, best_epoch=self.best_epoch
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by name, on the CPU."""
        tensors = {"random": self.random.get_state(), "losses": self.sampler.losses}
        # "used" is what the file format calls the averaged weights.
        networks = {"network": self.network, "used": self.averaged, "best": self.best}
        for name, network in networks.items():
            if network is None or (name == "used" and network is self.network):
                continue
            tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            for key, value in values.items():
                if value is not None:  # SGD without momentum has a None in its state
                    tensors[f"optimizer.{index}.{key}"] = value
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def restore(self, counters: Counters, tensors: dict[str, Tensor]) -> None:
        """Continue from the counters and tensors of another state with the same recipe.

        Raises KeyError or RuntimeError if they do not fit.
        """
        self.epoch, self.step = counters.epoch, counters.step
        self.random.set_state(tensors["random"])
        self.sampler.losses.copy_(tensors["losses"])
        self.network.load_state_dict(_with_prefix("network", tensors))
        if self.averaged is not self.network:
            self.averaged.load_state_dict(_with_prefix("used", tensors))
        if counters.best_loss is not None:
            self.best = copy.deepcopy(self.averaged)
            self.best.load_state_dict(_with_prefix("best", tensors))
            self.best_loss, self.best_epoch = counters.best_loss, counters.best_epoch

        parameters = list(self.network.parameters())
        optimizer_state: dict[int, dict[str, Tensor]] = {}
        for name, saved in _with_prefix("optimizer", tensors).items():
            index, key = name.split(".", 1)
            # Restore each tensor in the memory layout of its parameter (channels_last): with
            # another layout the optimiser takes a different code path and rounds differently.
            like = parameters[int(index)]
            same_shape = saved.shape == like.shape
            value = torch.empty_like(like).copy_(saved) if same_shape else saved
            optimizer_state.setdefault(int(index), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": optimizer_state, "param_groups": groups})


def begin(run: Run) -> TrainingState:
    """Return the state before the first step; the same seed gives the same state."""
    recipe = run.recipe
    torch.manual_seed(run.seed)
    random = torch.Generator().manual_seed(run.seed)
    network = build_network(recipe, output_count(recipe, run.split.data.labels)).to(run.device)
    network.to(memory_format=torch.channels_last)
    averaged = copy.deepcopy(network) if recipe.ema_decay else network
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "adamw":
        optimizer = torch.optim.AdamW(
            network.parameters(),
            recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
    else:
        optimizer = torch.optim.SGD(
            network.parameters(),
            recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
    return TrainingState(
        network=network,
        averaged=averaged,
        optimizer=optimizer,
        random=random,
        sampler=Sampler(recipe, len(run.split.images)),
    )


def _with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = prefix + "."
    return {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
