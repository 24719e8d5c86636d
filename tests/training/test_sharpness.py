"""Sharpness-aware minimisation."""

from pathlib import Path

import pytest
import torch

from tests.training.small_run import epochs_of, train
from training.data.mnist import load_mnist
from training.models import build_network, scale
from training.recipes.recipe import Recipe
from training.run import checkpoint
from training.sharpness import worst_nearby
from training.state import begin


def test_inside_the_weights_are_moved_along_their_gradients_and_outside_they_are_as_before() -> (
    None
):
    torch.manual_seed(0)
    network = build_network(Recipe(name="x", channels=(4, 8), hidden=()))
    pixels, labels = torch.rand(16, 1, 28, 28), torch.arange(16) % 10
    loss = torch.nn.functional.cross_entropy(network(pixels), labels)
    loss.backward()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with worst_nearby(network, 0.05):
        moves = [p.detach() - before[name] for name, p in network.named_parameters()]
        assert torch.cat([m.flatten() for m in moves]).norm().item() == pytest.approx(0.05, 1e-3)
        worse = torch.nn.functional.cross_entropy(network(pixels), labels)
        assert worse > loss
    after = network.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    # Batch statistics of inside count for nothing; that there was a batch is counted.
    assert {name.rpartition(".")[2] for name in changed} <= {"num_batches_tracked"}
    network(pixels)
    assert not torch.equal(network.state_dict()["1.running_mean"], before["1.running_mean"])


def test_the_weights_are_as_before_after_an_error_too() -> None:
    network = build_network(Recipe(name="x", hidden=(4,)))
    network(torch.rand(2, 1, 28, 28)).sum().backward()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    with pytest.raises(ZeroDivisionError), worst_nearby(network, 1.0):
        raise ZeroDivisionError
    assert all(map(torch.equal, network.parameters(), before))


def test_a_step_is_by_the_gradient_of_the_moved_weights_alone(tmp_path: Path) -> None:
    # One step of plain descent by all images.
    few = ["--recipe", "book-30-30", "--train-limit", "50", "--batch-size", "full", "--lr", "0.5"]
    few += ["--epochs", "1", "--sam", "0.3", "--no-publish"]
    reached = checkpoint.read(train(tmp_path, *few) / "checkpoint.safetensors").network
    recipe = Recipe(name="x", hidden=(30, 30))
    network = begin(recipe, 10, 50, 0, torch.device("cpu")).network
    data = load_mnist()
    pixels, labels = scale(data.train_images[:50]), data.train_labels[:50]

    def gradients() -> list[torch.Tensor]:
        network.zero_grad()
        torch.nn.functional.cross_entropy(network(pixels), labels).backward()
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    first = gradients()
    length = torch.cat([g.flatten() for g in first]).norm()
    with torch.no_grad():
        for p, g in zip(network.parameters(), first, strict=True):
            p.add_(g * (0.3 / length))
    second = gradients()
    with torch.no_grad():
        for p, before, g in zip(network.parameters(), first, second, strict=True):
            p.sub_(before * (0.3 / length) + 0.5 * g)
    for ours, theirs in zip(network.parameters(), reached.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_run_with_it_learns_otherwise(tmp_path: Path) -> None:
    few = ["--recipe", "book-30-30", "--validation-size", "1000", "--train-limit", "500"]
    few += ["--lr", "0.1", "--epochs", "3", "--no-publish"]
    plain = epochs_of(train(tmp_path / "plain", *few))
    flat = epochs_of(train(tmp_path / "flat", *few, "--sam", "0.05"))
    assert flat[0]["train_loss"] != plain[0]["train_loss"]
    assert flat[2]["train_loss"] < flat[0]["train_loss"]
