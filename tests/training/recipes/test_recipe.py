from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.small_run import epochs_of, train
from training.commands.train import main
from training.data.augment import deform, draw
from training.errors import UsageError
from training.models import Classifier, build_network, count_parameters
from training.recipes import recipe as recipes
from training.recipes.presets import RECIPES
from training.recipes.recipe import Recipe
from training.run import checkpoint


def test_book_is_the_course_notes_classifier() -> None:
    book = RECIPES["book"]
    assert (book.hidden, book.activation, book.optimizer) == ((256,), "relu", "sgd")
    assert (book.learning_rate, book.batch_size, book.epochs) == (1e-3, 64, 40)
    assert (book.momentum, book.weight_decay, book.shift, book.standardise) == (0, 0, 0, False)
    assert count_parameters(build_network(book)) == 784 * 256 + 256 + 256 * 10 + 10
    assert "Conv" not in str(build_network(book))


def test_the_small_net_of_the_notes_has_about_25000_parameters() -> None:
    assert count_parameters(build_network(RECIPES["book-30-30"])) == 24_790


def test_recipes_are_as_small_as_they_say() -> None:
    assert count_parameters(build_network(RECIPES["tiny"])) < 10_000
    assert 4 * count_parameters(build_network(RECIPES["record"])) < 3_000_000  # bytes
    assert "Conv" not in str(build_network(RECIPES["mlp"]))


@pytest.mark.parametrize(("stride", "features"), [("1", 8 * 7 * 7), ("2", 8 * 3 * 3)])
def test_a_run_learns_with_the_maps_that_it_is_told(
    tmp_path: Path, stride: str, features: int
) -> None:
    few = ["--recipe", "fast", "--channels", "4,8", "--stride", stride, "--pool-after", "1,2"]
    few += ["--train-limit", "2000", "--epochs", "3", "--no-publish"]
    run = train(tmp_path, *few)
    assert checkpoint.read(run / "checkpoint.safetensors").network[-1].weight.shape[1] == features
    losses = [figures["train_loss"] for figures in epochs_of(run)]
    assert losses[2] < losses[0]


def test_a_run_learns_from_the_means_of_maps(tmp_path: Path) -> None:
    few = ["--recipe", "fast", "--channels", "4,8", "--average-maps", "--batch-size", "64"]
    few += ["--train-limit", "2000", "--epochs", "3", "--also", "int8", "--force"]
    run = train(tmp_path, *few)
    network = checkpoint.read(run / "checkpoint.safetensors").network
    assert network[-1].weight.shape[1] == 8
    maps = network[:-3](torch.rand(2, 1, 28, 28))  # all but means, dropout, and the dense layer
    assert torch.allclose(network[-3](maps), maps.mean((2, 3)))
    losses = [figures["train_loss"] for figures in epochs_of(run)]
    assert losses[2] < losses[0]
    assert (tmp_path / "models" / "mnist-int8" / "1" / "model.onnx").exists()


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("book")])
def test_recipes_choose_nothing_on_the_test_set(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.validation_size == (2000 if name in ("fast", "record") else 5000)
    assert not recipe.report_test_each_epoch


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_maps_images_to_logits_and_distributions(name: str) -> None:
    images = torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8)
    logits, probabilities = Classifier(build_network(RECIPES[name])).eval()(images)
    assert logits.shape == probabilities.shape == (3, 10)
    assert torch.allclose(probabilities.sum(1), torch.ones(3), atol=1e-6)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_pooling_before_the_activation_changes_nothing(activation: str) -> None:
    torch.manual_seed(0)
    layers = list(build_network(Recipe(name="x", channels=(4, 8, 8), activation=activation)))
    after = list(layers)
    for index, layer in enumerate(layers):
        if isinstance(layer, torch.nn.MaxPool2d):
            after[index], after[index + 1] = layers[index + 1], layer
    pixels = torch.rand(8, 1, 28, 28)
    ours, theirs = (torch.nn.Sequential(*each).eval()(pixels) for each in (layers, after))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_neurons_can_be_chosen(activation: str) -> None:
    network = build_network(Recipe(name="x", activation=activation))
    assert activation in str(network).lower()


def test_a_recipe_survives_json() -> None:
    for recipe in RECIPES.values():
        assert recipes.from_json(recipes.to_json(recipe)) == recipe


def test_values_out_of_bounds_are_refused_by_flag() -> None:
    with pytest.raises(UsageError, match="--lr"):
        Recipe(name="x", learning_rate=-1.0)
    assert main(["--epochs", "0"]) == 2


def test_maps_are_halved_where_the_recipe_says_and_only_as_often_as_they_can_be(
    capsys: pytest.CaptureFixture[str],
) -> None:
    network = build_network(Recipe(name="x", channels=(4, 4, 4, 4), pool_after=(1, 2, 4)))
    assert [type(layer).__name__ for layer in network].count("MaxPool2d") == 3
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert build_network(Recipe(name="x", channels=(4,)))(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(UsageError, match="--pool-after names convolution 5"):
        Recipe(name="x", channels=(4, 4), pool_after=(1, 5))
    assert main(["--channels", "4,4", "--pool-after", "1,5"]) == 2
    assert "--pool-after names convolution 5" in capsys.readouterr().err
    assert main(["--channels", "4", "--pool-after", "2,3"]) == 2
    assert "--pool-after names convolution 3" in capsys.readouterr().err
    # Whose recipe halves maps of convolutions that are not there has said nothing wrong.
    small = recipes.changed(RECIPES["fast"], {"channels": (4, 8)})
    assert small.pool_after == ()
    assert build_network(small)(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(UsageError, match="more than 3"):
        Recipe(name="x", channels=(4, 4, 4, 4), pool_after=(1, 2, 3, 4))
    larger = Recipe(name="x", channels=(4, 4, 4, 4), pool_after=(1, 2, 3, 4), stride=1)
    assert build_network(larger)(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(UsageError, match="more than 4"):
        Recipe(name="x", channels=(4,) * 5, pool_after=(1, 2, 3, 4, 5), stride=1)


@pytest.mark.parametrize(("stride", "side"), [(2, 12), (1, 28)])
def test_the_first_convolution_sees_every_pixel(stride: int, side: int) -> None:
    first = build_network(Recipe(name="x", channels=(1,), stride=stride))[0]
    pixels = torch.zeros(1, 1, 28, 28, requires_grad=True)
    maps = first(pixels)
    assert maps.shape == (1, 1, side, side)
    maps.sum().backward()
    assert pixels.grad is not None
    assert bool((pixels.grad != 0).all())


def test_every_knob_is_a_flag() -> None:
    text = subprocess.run(
        [sys.executable, "-m", "training.commands.train", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for knob in recipes.knobs():
        assert recipes.flag_of(knob) in text


def test_augmentation_moves_within_its_bounds_and_only_if_asked() -> None:
    pixels = torch.zeros(64, 1, 28, 28)
    pixels[:, :, 13:15, 13:15] = 1.0
    random = torch.Generator().manual_seed(0)
    plain, shifting = Recipe(name="x"), Recipe(name="x", shift=2.0)
    assert deform(pixels, draw(plain, 64, random), plain) is pixels
    moved = deform(pixels, draw(shifting, 64, random), shifting)
    columns = torch.arange(28.0)
    centres = (moved.sum(2).squeeze(1) @ columns) / moved.sum((1, 2, 3))
    assert 1.0 < (centres - 13.5).abs().max() <= 2.01
    assert centres.unique().numel() > 50  # each image by its own amount


def test_elastic_bending_moves_points_of_one_image_by_amounts_of_their_own() -> None:
    recipe = Recipe(name="x", elastic=2.0)
    # Vertical lines: bent, no two rows of an image are the same any more.
    pixels = torch.zeros(8, 1, 28, 28)
    pixels[:, :, :, 8:20:4] = 1.0
    draws = draw(recipe, 8, torch.Generator().manual_seed(0))
    assert draws.abs().max() <= 1
    bent = deform(pixels, draws, recipe)
    assert (bent[:, :, 1:] - bent[:, :, :-1]).abs().amax((1, 2, 3)).min() > 0.05
    still = deform(pixels, torch.zeros_like(draws), recipe)
    assert torch.allclose(still, pixels, atol=1e-4)
    # Between the knots it is bilinear.
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
    # All knots to one side by one pixel (of the two on each side that are allowed): so goes all.
    draws = torch.zeros_like(draws)
    draws[:, 4 : 4 + 49] = 0.5
    aside = deform(pixels, draws, recipe)
    assert torch.allclose(aside[:, :, :, :-1], pixels[:, :, :, 1:], atol=1e-4)
    # A share of the draws does to its images what the whole would have done.
    draws = draw(recipe, 8, torch.Generator().manual_seed(0))
    assert torch.allclose(deform(pixels[1::2], draws[1::2], recipe), bent[1::2], atol=1e-6)
