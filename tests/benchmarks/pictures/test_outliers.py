"""Outliers are what their names say, drawn again by a seed, and of disjoint halves."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from benchmarks.pictures import outliers
from benchmarks.pictures.kinds import HalfName, file_of
from benchmarks.pictures.outliers import MAKERS, Outlier, fashion_picture, make

HALF_NAMES: tuple[HalfName, ...] = ("tune", "test")


def content(outlier: Outlier) -> bytes:
    return outlier.tobytes() if isinstance(outlier, np.ndarray) else file_of(outlier)


@pytest.mark.parametrize("half", HALF_NAMES)
@pytest.mark.parametrize("name", MAKERS)
def test_a_seed_draws_the_same_outlier_again(name: str, half: HalfName) -> None:
    first = [content(make(name, np.random.default_rng(seed), half)) for seed in range(3)]
    assert first == [content(make(name, np.random.default_rng(seed), half)) for seed in range(3)]
    assert len(set(first)) > 1


def test_the_halves_share_neither_fonts_nor_noise() -> None:
    fonts = [set(outliers._fonts(outliers._FONTS[half])) for half in HALF_NAMES]
    assert len(fonts[0]) > 5
    assert len(fonts[1]) == 9
    assert fonts[0].isdisjoint(fonts[1])
    assert set(outliers._TUNE_NOISE).isdisjoint(outliers._TEST_NOISE)


def test_letters_that_look_like_digits_do_not_count() -> None:
    alphabet = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
    assert alphabet - set(outliers.LETTERS) == set("BDGIJOQSYZbdgiloqsyz")


@pytest.mark.parametrize("half", HALF_NAMES)
def test_touching_digits_meet_and_separate_ones_do_not(half: HalfName) -> None:
    for seed in range(7):
        joined = make("touching_digits", np.random.default_rng(seed), half)
        apart = make("separate_digits", np.random.default_rng(seed), half)
        assert isinstance(joined, Image.Image)
        assert isinstance(apart, Image.Image)
        assert gaps(joined) == 0
        assert gaps(apart) >= 1


def gaps(picture: Image.Image) -> int:
    """Columns of paper between columns of ink, in runs."""
    grey = np.asarray(picture)
    inked = (grey < (int(grey.min()) + int(grey.max())) / 2).any(axis=0)
    edges = np.flatnonzero(np.diff(inked.astype(int)))
    return int(len(edges) // 2 - 1)


def test_clothes_are_dark_on_white() -> None:
    clothes = np.full((28, 28), 200, np.uint8)
    page = fashion_picture(clothes, np.random.default_rng(0))
    assert isinstance(page, Image.Image)
    assert page.getpixel((0, 0)) == 255
    assert page.getpixel((page.width // 2, page.height // 2)) == 55
