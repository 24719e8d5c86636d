"""A data set as tensors, and the split of its training images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from training.data import outliers
from training.errors import UsageError
from training.recipes.recipe import Recipe

DIGITS = tuple("0123456789")


class DataSet(NamedTuple):
    """A whole data set on the CPU; images are uint8 [N,28,28], labels int64 [N]."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    sha256: dict[str, str]  # of each uncompressed file, by name
    name: str = "mnist"  # the default name of models trained on it
    labels: tuple[str, ...] = DIGITS  # the name of each class


class Split(NamedTuple):
    """A data set whose training images are split in two: to train on, and to validate on.

    `images` includes the outliers of the recipe, with classes of their own. Images are uint8
    [N,28,28], labels int64 [N]. Nothing that is trained, calibrated or chosen may depend on the
    test images in `data`.
    """

    data: DataSet
    images: Tensor
    labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor


def split(data: DataSet, recipe: Recipe) -> Split:
    """Hold out the last `validation_size` training images. Raises UsageError."""
    kept = len(data.train_images) - recipe.validation_size
    if kept < 1:
        raise UsageError(
            f"--validation-size {recipe.validation_size} leaves none of the "
            f"{len(data.train_images)} training images to train on; choose a smaller one."
        )
    end = min(kept, recipe.train_limit) if recipe.train_limit else kept
    images, labels = data.train_images[:end], data.train_labels[:end]
    if output_count(recipe, data.labels) > len(data.labels):
        pictures, classes = outliers.make(images, labels, round(recipe.outliers * end))
        images, labels = torch.cat([images, pictures]), torch.cat([labels, classes])
    return Split(
        data=data,
        images=images,
        labels=labels,
        validation_images=data.train_images[kept:],
        validation_labels=data.train_labels[kept:],
    )


def output_count(recipe: Recipe, labels: tuple[str, ...]) -> int:
    """Return the number of outputs of a network: the classes, then those of outliers.

    What is not a digit is known for digits only, so other data sets have no outliers.
    """
    learns_outliers = recipe.outliers > 0 and labels == DIGITS
    return len(labels) + (len(outliers.CLASSES) if learns_outliers else 0)
