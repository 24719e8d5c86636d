"""Which images an epoch trains on: all of them, or few of those that are known already.

After few epochs nine images of MNIST in ten have a loss of nearly nothing, and so has their
gradient. Leaving most of them out makes an epoch several times cheaper for little loss (selective
backpropagation, Jiang et al. 2019; InfoBatch, Qin et al. 2024, which scales what is left up: with
the temperature fitted on held-out images that was no gain here).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.recipes.recipe import Recipe


class Sampler:
    """Orders the images of each epoch, and remembers the loss that each had when last seen."""

    def __init__(self, recipe: Recipe, images: int) -> None:
        self._recipe = recipe
        self._images = images
        self._selects = recipe.easy_below > 0 and recipe.easy_share < 1
        self.losses = torch.full((images if self._selects else 0,), math.inf)
        self.fresh = self.losses.clone()  # what this process noted in this epoch, else -1

    def order(self, generator: torch.Generator, at_least: int = 1) -> Tensor:
        """Return the images of an epoch, int64 [N], shuffled: each at most once.

        All of them where fewer than `at_least` would be left.
        """
        if not self._selects:
            return torch.randperm(self._images, generator=generator)
        self.fresh.fill_(-1)
        easy = self.losses < self._recipe.easy_below
        drawn = torch.rand(self._images, generator=generator) < self._recipe.easy_share
        chosen = (drawn | ~easy).nonzero().squeeze(1)
        if len(chosen) < at_least:
            chosen = torch.arange(self._images)
        return chosen[torch.randperm(len(chosen), generator=generator)]

    def saw(self, chosen: Tensor, losses: Tensor) -> None:
        """Note the losses, float32 [N], nats, of the images `chosen`, int64 [N] on the CPU."""
        if self._selects:
            self.fresh[chosen] = losses.detach().cpu()

    def end_epoch(self, fresh_of_all: Tensor) -> None:
        """Take on what all processes noted: the highest of their `fresh`, -1 where none did."""
        self.losses = torch.where(fresh_of_all >= 0, fresh_of_all, self.losses)
