"""Random deformations of a whole batch of tensors, and of how its strokes look.

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
# Draws per image of the other knobs, in the order of their columns.
_PENS = {"shear": 1, "perspective": 2, "stroke": 1, "resample": 1, "faint": 1, "frame": 4}


def draw(recipe: Recipe, count: int, generator: torch.Generator) -> Tensor:
    """Draw the deformation of each of `count` images: float32 [N,K], uniformly from -1 to 1.

    Always on the CPU. K is 0 for recipes without augmentation.
    """
    columns = [torch.zeros(count, 0)]
    if _moves(recipe):
        columns.append(torch.rand(_AFFINE, count, generator=generator).T * 2 - 1)
    if recipe.elastic:
        columns.append(torch.rand(count, 2 * _KNOTS * _KNOTS, generator=generator) * 2 - 1)
    for knob, width in _PENS.items():
        if getattr(recipe, knob):
            columns.append(torch.rand(count, width, generator=generator) * 2 - 1)
    return torch.cat(columns, 1)


def deform(pixels: Tensor, draws: Tensor, recipe: Recipe) -> Tensor:
    """Deform each image [N,1,28,28] in [0,1] by its draws, and change its strokes.

    Sampling is bilinear with zero padding.
    """
    if not draws.shape[1]:
        return pixels
    draws = draws.to(pixels.device)
    widths = ({"affine": _AFFINE} if _moves(recipe) else {}) | (
        {"elastic": 2 * _KNOTS * _KNOTS} if recipe.elastic else {}
    )
    widths |= {knob: width for knob, width in _PENS.items() if getattr(recipe, knob)}
    parts = dict(zip(widths, draws.split(list(widths.values()), 1), strict=True))
    if "affine" in parts:
        pixels = functional.grid_sample(pixels, _grid(parts, pixels, recipe), align_corners=False)
    if "stroke" in parts:
        # Dilated by a pixel in every direction for positive draws, eroded for negative ones.
        amount = parts["stroke"][:, :, None, None] * recipe.stroke
        signed = torch.where(amount > 0, pixels, -pixels)
        changed = _dilated(signed)
        changed = torch.where(amount > 0, changed, -changed)
        pixels = torch.lerp(pixels, changed, amount.abs())
    if "resample" in parts:
        # Half of the draws are positive and reduce; the side 28 changes nothing.
        reduced = (parts["resample"][:, 0].clamp(min=0) * (29 - recipe.resample)).floor().long()
        both_ways = _resampling().to(pixels.device)[28 - reduced.clamp(max=28 - recipe.resample)]
        pixels = (both_ways @ pixels[:, 0] @ both_ways.transpose(1, 2)).unsqueeze(1)
    if "faint" in parts:
        pixels = pixels * (1 - parts["faint"].clamp(min=0) * recipe.faint)[:, :, None, None]
    if "frame" in parts:
        # A line of one to three pixels along one of four edges, of any strength.
        chance, edge, depth, strength = parts["frame"].T
        places = torch.arange(28.0, device=pixels.device)
        first = (depth * 2).clamp(min=0)[:, None]  # half of them touch the edge
        line = (
            (places >= first.floor()) & (places < first + 1 + 2 * (strength[:, None] > 0.3))
        ).float()
        line = line * (0.6 + 0.4 * strength[:, None]) * ((chance + 1) / 2 < recipe.frame)[:, None]
        side = ((edge + 1) * 2).floor().clamp(max=3)[:, None]
        line = torch.where(side % 2 == 0, line, line.flip(1))
        across = torch.where(side[:, :, None] < 2, line[:, :, None], line[:, None, :])
        pixels = torch.maximum(pixels, across.unsqueeze(1))
    return pixels


def _moves(recipe: Recipe) -> bool:
    geometric = (recipe.shift, recipe.rotation, recipe.zoom, recipe.elastic)
    return any((*geometric, recipe.shear, recipe.perspective))


def _grid(parts: dict[str, Tensor], pixels: Tensor, recipe: Recipe) -> Tensor:
    """Return the place in the source of each pixel, float32 [N,28,28,2] in units of half a side."""
    affine = parts["affine"]
    angle = affine[:, 0] * math.radians(recipe.rotation)
    zoom = 1 + affine[:, 1] * recipe.zoom
    shift = affine[:, 2:].T * (recipe.shift / _HALF_SIDE)
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    first, second = [cosine, -sine], [sine, cosine]
    if "shear" in parts:
        shear = parts["shear"][:, 0] * recipe.shear
        first[1], second[1] = first[1] + shear * cosine, second[1] + shear * sine
    rows = [torch.stack([*first, shift[0]], 1), torch.stack([*second, shift[1]], 1)]
    theta = torch.stack(rows, 1).reshape(-1, 3)
    grid = (theta @ _places().to(pixels.device)).reshape(-1, 2, 28, 28)
    if "perspective" in parts:
        depth = (parts["perspective"] * (recipe.perspective / 2))[:, :, None, None]
        grid = grid / (1 + (grid * depth).sum(1, keepdim=True)).clamp(min=0.2)
    if "elastic" in parts:
        knots = parts["elastic"].reshape(-1, 2, _KNOTS, _KNOTS) * (recipe.elastic / _HALF_SIDE)
        weights = _knot_weights().to(pixels.device)
        grid = grid + weights @ knots @ weights.T
    return grid.permute(0, 2, 3, 1)


def _dilated(pixels: Tensor) -> Tensor:
    """Return the highest of each pixel [N,1,28,28] and its eight neighbours, outside ones left out.

    `max_pool2d` takes 20 times as long with one channel.
    """
    padded = functional.pad(pixels, (1, 1, 1, 1), value=-math.inf)
    across = torch.maximum(torch.maximum(padded[..., :-2], padded[..., 1:-1]), padded[..., 2:])
    highest = torch.maximum(across[..., :-2, :], across[..., 1:-1, :])
    return torch.maximum(highest, across[..., 2:, :])


@functools.cache
def _places() -> Tensor:
    """Return x, y and 1 of each pixel, float32 [3,784] in units of half a side, as affine_grid."""
    along = (torch.arange(28.0) + 0.5) / _HALF_SIDE - 1
    y, x = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([x, y, torch.ones(28, 28)]).flatten(1)


@functools.cache
def _knot_weights() -> Tensor:
    """Return the weight of each knot for each of 28 pixels in a row, float32 [28,7].

    As a matrix product, bilinear interpolation takes a third of the time.
    """
    knots = torch.eye(_KNOTS).unsqueeze(0)
    weights = functional.interpolate(knots, size=28, mode="linear", align_corners=True)
    return weights.squeeze(0).T


@functools.cache
def _resampling() -> Tensor:
    """Return, for each side 0 to 28, the matrix that reduces a row to it and enlarges it again.

    float32 [29,28,28]; reduced by averages, enlarged by linear interpolation.
    """
    rows = torch.eye(28).unsqueeze(0)
    matrices = [torch.eye(28), torch.full((28, 28), 1 / 28)]
    for side in range(2, 29):
        reduced = functional.interpolate(
            rows.unsqueeze(0), size=(28, side), mode="bilinear", antialias=True
        )[0]
        enlarged = functional.interpolate(reduced, size=28, mode="linear", align_corners=False)
        matrices.append(enlarged[0].T)
    return torch.stack(matrices)
