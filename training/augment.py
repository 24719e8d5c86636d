"""Random small deformations of a whole batch at once, on tensors in memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from training.recipes import Recipe

_HALF_SIDE = 14.0  # affine_grid measures in half sides


def augment(pixels: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Shift, turn and zoom each image [N,1,28,28] by its own random amounts (bilinear, zero fill).

    The amounts are drawn on the CPU from `generator`, evenly within the recipe's bounds.
    """
    if not (recipe.shift or recipe.rotation or recipe.zoom):
        return pixels
    count = len(pixels)
    draws = torch.rand(4, count, generator=generator) * 2 - 1
    angle = draws[0] * math.radians(recipe.rotation)
    zoom = 1 + draws[1] * recipe.zoom
    shift = draws[2:] * (recipe.shift / _HALF_SIDE)
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = [torch.stack([cosine, -sine, shift[0]], 1), torch.stack([sine, cosine, shift[1]], 1)]
    theta = torch.stack(rows, 1).to(pixels.device)
    grid = functional.affine_grid(theta, list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels, grid, align_corners=False)
