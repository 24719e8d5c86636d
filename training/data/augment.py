"""Random affine and elastic deformations of a whole batch of tensors.

Drawing and deforming are separate functions: processes that share a batch draw for all of it and
then deform their shards, with the same result as one process.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

from training.recipes.recipe import Recipe

_HALF_SIDE = 14.0  # of an image in pixels, the unit of affine_grid
_AFFINE = 4  # draws per image: angle, zoom, two shifts
_KNOTS = 7  # of the elastic field, along each side: one per 4 pixels


def draw(recipe: Recipe, count: int, generator: torch.Generator) -> Tensor:
    """Draw the deformation of each of `count` images: float32 [N,K], uniformly from -1 to 1.

    Always on the CPU. K is 0 for recipes without augmentation.
    """
    columns = [torch.zeros(count, 0)]
    if recipe.shift or recipe.rotation or recipe.zoom or recipe.elastic:
        columns.append(torch.rand(_AFFINE, count, generator=generator).T * 2 - 1)
    if recipe.elastic:
        columns.append(torch.rand(count, 2 * _KNOTS * _KNOTS, generator=generator) * 2 - 1)
    return torch.cat(columns, 1)


def deform(pixels: Tensor, draws: Tensor, recipe: Recipe) -> Tensor:
    """Deform each image [N,1,28,28] by its draws, with bilinear sampling and zero padding."""
    if not draws.shape[1]:
        return pixels
    angle = draws[:, 0] * math.radians(recipe.rotation)
    zoom = 1 + draws[:, 1] * recipe.zoom
    shift = draws[:, 2:_AFFINE].T * (recipe.shift / _HALF_SIDE)
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = [torch.stack([cosine, -sine, shift[0]], 1), torch.stack([sine, cosine, shift[1]], 1)]
    theta = torch.stack(rows, 1).to(pixels.device)
    grid = functional.affine_grid(theta, list(pixels.shape), align_corners=False)
    if recipe.elastic:
        knots = draws[:, _AFFINE:].reshape(-1, 2, _KNOTS, _KNOTS).to(pixels.device)
        knots = knots * (recipe.elastic / _HALF_SIDE)
        weights = _knot_weights().to(pixels.device)
        grid = grid + (weights @ knots @ weights.T).permute(0, 2, 3, 1)
    return functional.grid_sample(pixels, grid, align_corners=False)


@functools.cache
def _knot_weights() -> Tensor:
    """Return the weight of each knot for each of 28 pixels in a row, float32 [28,7].

    As a matrix product, bilinear interpolation takes a third of the time.
    """
    knots = torch.eye(_KNOTS).unsqueeze(0)
    weights = functional.interpolate(knots, size=28, mode="linear", align_corners=True)
    return weights.squeeze(0).T
