"""A data set as tensors, and the split of its training images."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from training.errors import UsageError
from training.recipes.recipe import Recipe

DIGITS = tuple("0123456789")


class DataSet(NamedTuple):
    """A whole data set on the CPU; images are uint8 [N, 28, 28], labels int64 [N]."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    sha256: dict[str, str]  # of each uncompressed file, by name
    name: str = "mnist"  # models trained on it are published under this name
    labels: tuple[str, ...] = DIGITS  # what each class is called


class Split(NamedTuple):
    """The training images cut in two: to learn from, and held out. uint8 [N,28,28], int64 [N]."""

    images: Tensor
    labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor


def split(data: DataSet, recipe: Recipe) -> Split:
    """Hold out the last `validation_size` training images; the test set is not looked at."""
    cut = len(data.train_images) - recipe.validation_size
    if cut < 1:
        raise UsageError(
            f"--validation-size {recipe.validation_size} leaves none of the "
            f"{len(data.train_images)} training images to learn from; choose a smaller one."
        )
    end = min(cut, recipe.train_limit) if recipe.train_limit else cut
    return Split(
        data.train_images[:end],
        data.train_labels[:end],
        data.train_images[cut:],
        data.train_labels[cut:],
    )
