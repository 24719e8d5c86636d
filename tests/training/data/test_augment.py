"""Random deformations."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import max_pool2d

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


def _only(**knobs: float) -> Recipe:
    return Recipe(name="x", **knobs)  # type: ignore[arg-type]


def _bar() -> torch.Tensor:
    """An upright bar, three pixels wide."""
    pixels = torch.zeros(2, 1, 28, 28)
    pixels[:, :, 6:22, 12:15] = 1.0
    return pixels


def test_strokes_become_wider_or_thinner() -> None:
    thick, thin = deform(_bar(), torch.tensor([[1.0], [-1.0]]), _only(stroke=1))[:, 0, 14]
    assert (thick > 0.5).sum() == 5
    assert (thin > 0.5).sum() == 1


def test_wider_and_thinner_strokes_are_highest_and_lowest_of_the_neighbours() -> None:
    pixels = torch.rand(2, 1, 28, 28)
    thick, thin = deform(pixels, torch.tensor([[1.0], [-1.0]]), _only(stroke=1))
    assert torch.allclose(thick, max_pool2d(pixels[0], 3, 1, 1))
    assert torch.allclose(thin, -max_pool2d(-pixels[1], 3, 1, 1))


def test_every_other_image_is_resampled_or_fainter() -> None:
    draws = torch.tensor([[-0.5], [1.0]])
    sharp, blurred = deform(_bar(), draws, _only(resample=7))
    assert torch.allclose(sharp, _bar()[0], atol=1e-6)
    assert 0.1 < (blurred - _bar()[0]).abs().max() < 0.9
    assert abs(float(blurred.sum() / _bar()[0].sum()) - 1) < 0.05
    strong, faint = deform(_bar(), draws, _only(faint=0.4))
    assert (strong.max(), faint.max()) == (1.0, pytest.approx(0.6))


def test_shear_and_perspective_move_ink_and_keep_its_middle() -> None:
    for recipe in (_only(shear=0.3), _only(perspective=0.4)):
        draws = draw(recipe, 2, torch.Generator().manual_seed(0))
        draws[:, :4] = 0
        moved = deform(_bar(), draws, recipe)
        assert (moved - _bar()).abs().max() > 0.2
        assert moved[:, 0, 14, 13].min() > 0.8


def test_frame_is_a_line_along_one_edge() -> None:
    recipe = _only(frame=0.5)
    draws = draw(recipe, 400, torch.Generator().manual_seed(0))
    lines = deform(torch.zeros(400, 1, 28, 28), draws, recipe)[:, 0]
    framed = lines.amax((1, 2)) > 0
    assert 0.4 < framed.double().mean() < 0.6
    along = torch.stack([lines[framed].amax(1).amin(1), lines[framed].amax(2).amin(1)]).amax(0)
    assert along.min() > 0.15  # from one side to the other
    assert lines[:, 5:23, 5:23].max() == 0


def test_each_shard_is_deformed_as_in_the_whole_batch() -> None:
    recipe = _only(
        **{"rotation": 9, "shear": 0.2, "perspective": 0.2, "stroke": 0.5, "resample": 8},
        **{"faint": 0.4, "frame": 0.3},
    )
    pixels = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    draws = draw(recipe, 8, torch.Generator().manual_seed(0))
    whole = deform(pixels, draws, recipe)
    assert torch.allclose(deform(pixels[1::2], draws[1::2], recipe), whole[1::2], atol=1e-6)
