"""Every kind can be drawn by either half, and what the kinds promise holds."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from benchmarks import served_models
from benchmarks.pictures.half import contrast
from benchmarks.pictures.kinds import HALVES, KINDS, HalfName, draw, file_of

SEVEN = served_models.test_images(1)[0]
HALF_NAMES: tuple[HalfName, ...] = ("tune", "test")


def drawn(kind: str, half: HalfName, seed: int = 0) -> bytes:
    return file_of(draw(kind, SEVEN, np.random.default_rng(seed), half))


@pytest.mark.parametrize("half", HALF_NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_draws_the_same_picture_again(kind: str, half: HalfName) -> None:
    first = drawn(kind, half)
    assert first == drawn(kind, half)
    assert first != drawn(kind, half, seed=1)
    picture = Image.open(io.BytesIO(first))
    assert 200 <= min(picture.size) <= max(picture.size) <= 420


def test_the_halves_share_no_drawing_function() -> None:
    names = [name for name in dir(HALVES["tune"]) if name in dir(HALVES["test"])]
    own = [name for name in names if getattr(HALVES["tune"], name).__class__.__name__ == "function"]
    shared = [n for n in own if getattr(HALVES["tune"], n) is getattr(HALVES["test"], n)]
    assert set(shared) == {"as_plane", "contrast", "coordinates", "thin"}
    assert len(own) - len(shared) == 11


@pytest.mark.parametrize("half", HALF_NAMES)
def test_exif_pictures_are_upright_once_their_orientation_is_applied(half: HalfName) -> None:
    seen = set()
    for seed in range(40):
        picture = Image.open(io.BytesIO(drawn("exif", half, seed)))
        seen.add(picture.getexif().get(0x0112))
        ink = np.asarray(ImageOps.exif_transpose(picture).convert("L")) < 128
        ys, xs = np.nonzero(ink)
        upper = xs[ys < ys.min() + 0.2 * np.ptp(ys)]
        lower = xs[ys > ys.max() - 0.4 * np.ptp(ys)]
        # The bar of this seven is at its top, and its foot left of the bar's end.
        assert np.ptp(upper) > 1.3 * np.ptp(lower)
        assert lower.mean() < upper.max()
    assert seen == set(range(1, 9))


@pytest.mark.parametrize("half", HALF_NAMES)
def test_colours_can_be_told_apart_by_luminance(half: HalfName) -> None:
    random = np.random.default_rng(0)
    pairs = [HALVES[half].colours(random) for _ in range(50)]
    assert min(contrast(paper, pen) for paper, pen in pairs) >= 2


@pytest.mark.parametrize("half", HALF_NAMES)
def test_thin_and_thick_pens_have_the_width_they_are_asked_for(half: HalfName) -> None:
    for width in (0.8, 4.0):
        strokes = HALVES[half].strokes(SEVEN, 280, np.random.default_rng(0), width)
        # A seven's strokes are some 35 pixels of MNIST long.
        assert (strokes > 0.4).sum() / 100 / 35 == pytest.approx(width, rel=0.35)
