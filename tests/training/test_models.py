"""The networks that recipes describe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from service.core import digits
from tests.training.runs import epochs_of, train
from training import models
from training.models import build_network
from training.recipes.recipe import Recipe
from training.run import checkpoint


def test_dropout_keeps_units_with_its_probability_and_preserves_their_mean() -> None:
    torch.manual_seed(0)
    layer = next(
        layer
        for layer in build_network(Recipe(name="x", dropout=0.2))
        if isinstance(layer, torch.nn.Dropout)
    )
    values = layer.train()(torch.ones(100_000))
    assert (values > 0).float().mean() == pytest.approx(0.8, abs=0.01)
    assert values.mean() == pytest.approx(1.0, abs=0.01)
    assert torch.equal(layer.eval()(torch.ones(10)), torch.ones(10))


def test_dropout_follows_hidden_units_only() -> None:
    def layers(**knobs: object) -> list[str]:
        network = build_network(Recipe(name="x", dropout=0.5, **knobs))  # type: ignore[arg-type]
        return [type(layer).__name__ for layer in network]

    assert layers(hidden=()) == ["Flatten", "Linear"]
    assert layers(hidden=(9,)) == ["Flatten", "Linear", "ReLU", "Dropout", "Linear"]
    assert layers(channels=(4,), hidden=())[-3:] == ["Flatten", "Dropout", "Linear"]


@pytest.mark.parametrize(("stride", "features"), [("1", 8 * 7 * 7), ("2", 8 * 3 * 3)])
def test_stride_and_pooling_set_the_size_of_the_last_maps(
    tmp_path: Path, stride: str, features: int
) -> None:
    few = ["--recipe", "fast", "--channels", "4,8", "--stride", stride, "--pool-after", "1,2"]
    few += ["--train-limit", "2000", "--epochs", "3", "--no-publish"]
    run = train(tmp_path, *few)
    assert checkpoint.read(run / "checkpoint.safetensors").network[-1].weight.shape[1] == features
    losses = [metrics["train_loss"] for metrics in epochs_of(run)]
    assert losses[2] < losses[0]


def test_network_with_averaged_maps_learns_and_is_quantised(tmp_path: Path) -> None:
    few = ["--recipe", "fast", "--channels", "4,8", "--average-maps", "--batch-size", "64"]
    few += ["--train-limit", "2000", "--epochs", "3", "--also", "int8", "--force"]
    run = train(tmp_path, *few)
    network = checkpoint.read(run / "checkpoint.safetensors").network
    assert network[-1].weight.shape[1] == 8
    maps = network[:-3](torch.rand(2, 1, 28, 28))  # all but the means, dropout and the dense layer
    assert torch.allclose(network[-3](maps), maps.mean((2, 3)))
    losses = [metrics["train_loss"] for metrics in epochs_of(run)]
    assert losses[2] < losses[0]
    assert (tmp_path / "models" / "mnist-int8" / "1" / "model.onnx").exists()


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_pooling_before_the_activation_changes_nothing(activation: str) -> None:
    torch.manual_seed(0)
    layers = list(build_network(Recipe(name="x", channels=(4, 8, 8), activation=activation)))
    after = list(layers)
    for index, layer in enumerate(layers):
        if isinstance(layer, torch.nn.MaxPool2d):
            after[index], after[index + 1] = layers[index + 1], layer
    pixels = torch.rand(8, 1, 28, 28)
    ours, theirs = (torch.nn.Sequential(*order).eval()(pixels) for order in (layers, after))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_activation_can_be_chosen(activation: str) -> None:
    network = build_network(Recipe(name="x", activation=activation))
    assert activation in str(network).lower()


@pytest.mark.parametrize(("stride", "side"), [(2, 12), (1, 28)])
def test_first_convolution_covers_every_pixel(stride: int, side: int) -> None:
    first = build_network(Recipe(name="x", channels=(1,), stride=stride))[0]
    pixels = torch.zeros(1, 1, 28, 28, requires_grad=True)
    maps = first(pixels)
    assert maps.shape == (1, 1, side, side)
    maps.sum().backward()
    assert pixels.grad is not None
    assert bool((pixels.grad != 0).all())


def test_reasons_are_those_of_the_service() -> None:
    assert models.REASONS == digits.REASONS
