"""Made-up pictures that are not one digit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.data import outliers
from training.data.dataset import DIGITS, output_count, split
from training.data.mnist import CLOTHES, load_mnist
from training.data.outliers import NOT_A_DIGIT, SEVERAL_DIGITS, fit, make
from training.recipes.recipe import Recipe


def test_same_seed_gives_the_same_pictures_and_another_one_gives_others() -> None:
    mnist = load_mnist()
    digits, labels = mnist.train_images[:500], mnist.train_labels[:500]
    first, again = make(digits, labels, 300), make(digits, labels, 300)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], make(digits, labels, 300, seed=1)[0])


def test_every_class_is_there_and_no_picture_of_ink_is_empty() -> None:
    mnist = load_mnist()
    pictures, classes = make(mnist.train_images[:500], mnist.train_labels[:500], 400)
    assert pictures.shape == (400, 28, 28)
    assert pictures.dtype == torch.uint8
    assert set(classes.tolist()) == {*range(10), NOT_A_DIGIT, SEVERAL_DIGITS}
    assert (classes == NOT_A_DIGIT).sum() > 200
    printed = pictures[classes < 10]
    assert printed.amax((1, 2)).min() > 100


def test_ink_is_fitted_into_the_box_with_its_mass_in_the_middle() -> None:
    ink = np.zeros((90, 200), np.uint8)
    ink[10:70, 20:40] = 255
    field = fit(ink)
    rows, columns = np.flatnonzero(field.any(1)), np.flatnonzero(field.any(0))
    assert (len(rows), len(columns)) == (20, 7)
    assert abs(rows.mean() - 13.5) <= 0.5
    assert abs(columns.mean() - 13.5) <= 0.5
    assert not fit(np.zeros((5, 5), np.uint8)).any()


@pytest.mark.parametrize("character", outliers._LATIN + outliers._OTHER_LETTERS + outliers._SIGNS)
def test_the_font_of_every_character_has_it(character: str) -> None:
    missing = "\ue000"
    for name in outliers._FONTS if character.isascii() else outliers._FONTS[:2]:
        font = outliers._font(name)
        assert bytes(font.getmask(character)) != bytes(font.getmask(missing))


def test_recipe_adds_them_to_digits_only() -> None:
    mnist, recipe = load_mnist(), Recipe(name="x", outliers=0.5, train_limit=100)
    parts = split(mnist, recipe)
    assert len(parts.images) == len(parts.labels) == 150
    assert torch.equal(parts.images[:100], mnist.train_images[:100])
    assert len(split(mnist._replace(labels=CLOTHES), recipe).images) == 100
    assert output_count(recipe, DIGITS) == 12
    assert output_count(recipe, CLOTHES) == output_count(Recipe(name="x"), DIGITS) == 10
