"""The recipes that come with mnist-train."""

from __future__ import annotations

import pytest
import torch

from training.models import Classifier, build_network, count_parameters
from training.recipes.presets import RECIPES


def test_book_is_the_classifier_of_the_course_notes() -> None:
    book = RECIPES["book"]
    assert (book.hidden, book.activation, book.optimizer) == ((256,), "relu", "sgd")
    assert (book.learning_rate, book.batch_size, book.epochs) == (1e-3, 64, 40)
    assert (book.momentum, book.weight_decay, book.shift, book.standardise) == (0, 0, 0, False)
    assert count_parameters(build_network(book)) == 784 * 256 + 256 + 256 * 10 + 10
    assert "Conv" not in str(build_network(book))


def test_small_network_of_the_notes_has_24790_parameters() -> None:
    assert count_parameters(build_network(RECIPES["book-30-30"])) == 24_790


def test_recipes_have_the_documented_sizes() -> None:
    assert count_parameters(build_network(RECIPES["tiny"])) < 10_000
    assert 4 * count_parameters(build_network(RECIPES["record"])) < 3_000_000  # bytes
    assert "Conv" not in str(build_network(RECIPES["mlp"]))


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("book")])
def test_recipes_hold_out_validation_images_and_never_report_the_test_set(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.validation_size == {"fast": 10_000, "record": 2000}.get(name, 5000)
    assert not recipe.report_test_each_epoch


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_maps_images_to_logits_and_probabilities(name: str) -> None:
    images = torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8)
    logits, probabilities = Classifier(build_network(RECIPES[name])).eval()(images)
    assert logits.shape == probabilities.shape == (3, 10)
    assert torch.allclose(probabilities.sum(1), torch.ones(3), atol=1e-6)
