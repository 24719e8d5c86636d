"""The images of an epoch: all of them, or all hard images and a random share of the easy ones.

After a few epochs nine of ten MNIST images have a loss near zero, and so a gradient near zero.
Leaving most of them out makes an epoch several times cheaper at little cost in accuracy (selective
backpropagation, Jiang et al. 2019; InfoBatch, Qin et al. 2024). InfoBatch also rescales the loss of
the images it keeps; that did not help here, since the temperature is fitted anyway.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.recipes.recipe import Recipe


class Sampler:
    """Draws the images of each epoch, by the loss that each image had when it was last seen."""

    def __init__(self, recipe: Recipe, images: int) -> None:
        self._recipe = recipe
        self._images = images
        self._selects = recipe.easy_below > 0 and recipe.easy_share < 1
        self.losses = torch.full((images if self._selects else 0,), math.inf)
        # Losses that this process recorded in this epoch; -1 for images it did not see.
        self.recorded = self.losses.clone()

    def order(self, generator: torch.Generator, at_least: int = 1) -> Tensor:
        """Return the indices of an epoch's images, int64 [N], shuffled and without repetition.

        All images if the selection would leave fewer than `at_least`.
        """
        if not self._selects:
            return torch.randperm(self._images, generator=generator)
        self.recorded.fill_(-1)
        easy = self.losses < self._recipe.easy_below
        drawn = torch.rand(self._images, generator=generator) < self._recipe.easy_share
        chosen = (drawn | ~easy).nonzero().squeeze(1)
        if len(chosen) < at_least:
            chosen = torch.arange(self._images)
        return chosen[torch.randperm(len(chosen), generator=generator)]

    def record(self, indices: Tensor, losses: Tensor) -> None:
        """Record the losses, float32 [N] in nats, of the images `indices`, int64 [N] on the CPU."""
        if self._selects:
            self.recorded[indices] = losses.detach().cpu()

    def end_epoch(self, recorded: Tensor) -> None:
        """Update the losses from those that any process recorded; -1 keeps the earlier loss."""
        self.losses = torch.where(recorded >= 0, recorded, self.losses)
