"""What a recipe accepts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training.commands.train import main
from training.errors import UsageError
from training.models import build_network
from training.recipes.presets import RECIPES
from training.recipes.recipe import Recipe, changed, from_json, to_json


def test_early_stopping_requires_validation_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--recipe", "book", "--patience", "2", "--runs", str(tmp_path)]) == 2
    assert "--validation-size" in capsys.readouterr().err


def test_self_distillation_requires_ema_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--runs", str(tmp_path), "--recipe", "book", "--self-distillation", "0.5"]) == 2
    assert "--ema-decay" in capsys.readouterr().err


def test_recipe_round_trips_through_json() -> None:
    for recipe in RECIPES.values():
        assert from_json(to_json(recipe)) == recipe


def test_out_of_bounds_value_is_refused_by_its_flag() -> None:
    with pytest.raises(UsageError, match="--lr"):
        Recipe(name="x", learning_rate=-1.0)
    assert main(["--epochs", "0"]) == 2


def test_pooling_is_limited_by_the_convolutions_and_the_size_of_their_maps(
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
    # Fewer channels drop the recipe's pooling of missing convolutions without an error.
    small = changed(RECIPES["fast"], {"channels": (4, 8)})
    assert small.pool_after == ()
    assert build_network(small)(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(UsageError, match="more than 3"):
        Recipe(name="x", channels=(4, 4, 4, 4), pool_after=(1, 2, 3, 4))
    larger = Recipe(name="x", channels=(4, 4, 4, 4), pool_after=(1, 2, 3, 4), stride=1)
    assert build_network(larger)(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(UsageError, match="more than 4"):
        Recipe(name="x", channels=(4,) * 5, pool_after=(1, 2, 3, 4, 5), stride=1)
