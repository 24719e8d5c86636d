"""The split of the training images."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from training.data.dataset import DataSet, split
from training.errors import UsageError
from training.recipes.presets import RECIPES
from training.recipes.recipe import Recipe

COUNT = 10


def recipe_with(*, validation_size: int, train_limit: int = 0) -> Recipe:
    recipe = RECIPES["fast"]
    return dataclasses.replace(recipe, validation_size=validation_size, train_limit=train_limit)


@pytest.fixture
def data() -> DataSet:
    """Ten training images, each filled with its index, and two test images."""
    images = torch.arange(COUNT, dtype=torch.uint8).reshape(-1, 1, 1).expand(-1, 28, 28)
    labels = torch.arange(COUNT)
    return DataSet(images, labels, images[:2], labels[:2], sha256={})


@pytest.mark.parametrize(
    ("validation_size", "train_limit", "trained", "validated"),
    [
        (3, 0, range(7), range(7, 10)),
        (0, 0, range(10), range(0)),
        (3, 4, range(4), range(7, 10)),
        (3, 100, range(7), range(7, 10)),
        (9, 0, range(1), range(1, 10)),
    ],
)
def test_last_training_images_are_held_out(
    data: DataSet, validation_size: int, train_limit: int, trained: range, validated: range
) -> None:
    recipe = recipe_with(validation_size=validation_size, train_limit=train_limit)
    parts = split(data, recipe)
    assert parts.labels.tolist() == parts.images[:, 0, 0].tolist() == list(trained)
    assert parts.validation_labels.tolist() == list(validated)
    assert parts.validation_images[:, 0, 0].tolist() == list(validated)
    assert parts.data is data


@pytest.mark.parametrize("validation_size", [COUNT, COUNT + 1])
def test_validation_split_must_leave_an_image_to_train_on(
    data: DataSet, validation_size: int
) -> None:
    with pytest.raises(UsageError, match=f"--validation-size {validation_size} .* 10 training"):
        split(data, recipe_with(validation_size=validation_size))
