"""Everything that moves while a run goes on, and its way into tensors and back.

A run that starts again from these tensors goes on bit for bit as if it had never stopped: weights,
their moving average, the best weights so far, the optimiser's own tensors and the state of the
random generator. Dropout draws from torch's global generator, which the loop seeds anew for each
epoch, so that it needs no place here.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from training.data.sampling import Sampler
from training.models import build_network
from training.recipes.recipe import Recipe


class Trained(NamedTuple):
    """The weights to use, and after how many epochs they were reached."""

    network: nn.Sequential
    epoch: int


@dataclass
class TrainingState:
    """What changes from step to step. `used` is `network` itself where nothing is averaged."""

    network: nn.Sequential
    used: nn.Sequential
    optimizer: torch.optim.Optimizer
    random: torch.Generator  # order and augmentation
    sampler: Sampler
    epoch: int = 0  # completed
    step: int = 0
    best: nn.Sequential | None = None  # with early stopping only
    best_loss: float = math.inf
    best_epoch: int = 0

    def result(self) -> Trained:
        """Return the weights to use: the best on validation, else the last (or their average)."""
        if self.best is not None:
            return Trained(self.best, self.best_epoch)
        return Trained(self.used, self.epoch)

    def keep_if_best(self, loss: float) -> None:
        """Remember the weights of this epoch if none had a lower validation loss."""
        if loss < self.best_loss:
            self.best = copy.deepcopy(self.used)
            self.best_loss, self.best_epoch = loss, self.epoch

    def numbers(self) -> dict[str, Any]:
        """Return what is no tensor, as JSON values."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "best_loss": self.best_loss if self.best else None,
            "best_epoch": self.best_epoch,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by name, on the CPU."""
        found = {"random": self.random.get_state(), "losses": self.sampler.losses}
        networks = {"network": self.network, "used": self.used, "best": self.best}
        for name, network in networks.items():
            if network is None or (name == "used" and network is self.network):
                continue
            found |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            for key, value in values.items():
                if value is not None:  # SGD without momentum says so
                    found[f"optimizer.{index}.{key}"] = value
        return {name: value.detach().cpu().contiguous() for name, value in found.items()}

    def restore(self, numbers: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take on what `numbers` and `tensors` gave. Raises KeyError or RuntimeError otherwise."""
        self.epoch, self.step = numbers["epoch"], numbers["step"]
        self.random.set_state(tensors["random"])
        self.sampler.losses.copy_(tensors["losses"])
        self.network.load_state_dict(_below("network", tensors))
        if self.used is not self.network:
            self.used.load_state_dict(_below("used", tensors))
        if numbers["best_loss"] is not None:
            self.best = copy.deepcopy(self.used)
            self.best.load_state_dict(_below("best", tensors))
            self.best_loss, self.best_epoch = numbers["best_loss"], numbers["best_epoch"]
        self._restore_optimizer(_below("optimizer", tensors))

    def _restore_optimizer(self, tensors: dict[str, Tensor]) -> None:
        parameters = list(self.network.parameters())
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            index, key = name.split(".", 1)
            # With the memory layout of its parameter (channels_last), as the optimiser made it: it
            # goes another way, and rounds otherwise, where layouts differ.
            like = parameters[int(index)]
            if value.shape == like.shape:
                value = torch.empty_like(like).copy_(value)  # noqa: PLW2901
            state.setdefault(int(index), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def begin(
    recipe: Recipe, classes: int, images: int, seed: int, device: torch.device
) -> TrainingState:
    """Return the state before the first step; the same seed gives the same."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    network = build_network(recipe, classes).to(device)
    network.to(memory_format=torch.channels_last)
    used = copy.deepcopy(network) if recipe.ema_decay else network
    sampler = Sampler(recipe, images)
    return TrainingState(network, used, _optimizer(recipe, network), random, sampler)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = prefix + "."
    return {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}


def _optimizer(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    parameters = network.parameters()
    if recipe.optimizer == "adamw":
        decay = recipe.weight_decay
        return torch.optim.AdamW(parameters, recipe.learning_rate, weight_decay=decay, fused=True)
    return torch.optim.SGD(
        parameters,
        recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
