"""Random deformations."""

from __future__ import annotations

import torch

from training.data.augment import deform, draw
from training.recipes.recipe import Recipe


def test_shift_stays_within_its_bounds_and_is_off_by_default() -> None:
    pixels = torch.zeros(64, 1, 28, 28)
    pixels[:, :, 13:15, 13:15] = 1.0
    random = torch.Generator().manual_seed(0)
    plain, shifting = Recipe(name="x"), Recipe(name="x", shift=2.0)
    assert deform(pixels, draw(plain, 64, random), plain) is pixels
    moved = deform(pixels, draw(shifting, 64, random), shifting)
    columns = torch.arange(28.0)
    centres = (moved.sum(2).squeeze(1) @ columns) / moved.sum((1, 2, 3))
    assert 1.0 < (centres - 13.5).abs().max() <= 2.01
    assert centres.unique().numel() > 50  # a different shift for each image


def test_elastic_deformation_interpolates_between_random_knots() -> None:
    recipe = Recipe(name="x", elastic=2.0)
    # Vertical lines: once they are bent, no two rows of an image are equal.
    pixels = torch.zeros(8, 1, 28, 28)
    pixels[:, :, :, 8:20:4] = 1.0
    draws = draw(recipe, 8, torch.Generator().manual_seed(0))
    assert draws.abs().max() <= 1
    bent = deform(pixels, draws, recipe)
    assert (bent[:, :, 1:] - bent[:, :, :-1]).abs().amax((1, 2, 3)).min() > 0.05
    still = deform(pixels, torch.zeros_like(draws), recipe)
    assert torch.allclose(still, pixels, atol=1e-4)
    # Bilinear between the knots.
    free = draws.clone()
    free[:, :4] = 0
    knots = free[:, 4:].reshape(8, 2, 7, 7) * (2.0 / 14)
    bilinear = {"mode": "bilinear", "align_corners": True}
    field = torch.nn.functional.interpolate(knots, size=28, **bilinear).permute(0, 2, 3, 1)
    still_grid = torch.nn.functional.affine_grid(
        torch.eye(3)[:2].expand(8, 2, 3), [8, 1, 28, 28], align_corners=False
    )
    sampled = torch.nn.functional.grid_sample(pixels, still_grid + field, align_corners=False)
    assert torch.allclose(deform(pixels, free, recipe), sampled, atol=1e-4)
    # All knots one pixel to one side (at most two are allowed) shift the whole image.
    draws = torch.zeros_like(draws)
    draws[:, 4 : 4 + 49] = 0.5
    aside = deform(pixels, draws, recipe)
    assert torch.allclose(aside[:, :, :, :-1], pixels[:, :, :, 1:], atol=1e-4)
    # A shard with its draws is deformed as it would be in the whole batch.
    draws = draw(recipe, 8, torch.Generator().manual_seed(0))
    assert torch.allclose(deform(pixels[1::2], draws[1::2], recipe), bent[1::2], atol=1e-6)
