"""The state of a run."""

from __future__ import annotations

import pytest
import torch

from tests.training.runs import begin_on_mnist
from training.recipes.recipe import Recipe
from training.state import TrainingState


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_state_round_trips_through_tensors(momentum: float) -> None:
    recipe = Recipe(name="x", channels=(4,), momentum=momentum, ema_decay=0.9)

    def step(state: TrainingState) -> None:
        pixels = torch.rand(8, 1, 28, 28, generator=state.random)
        state.optimizer.zero_grad()
        state.network(pixels).square().sum().backward()
        state.optimizer.step()

    first, second = (begin_on_mnist(recipe, seed) for seed in (1, 2))
    step(first)
    second.restore(first.counters(), first.tensors())
    for state in (first, second):
        step(state)
    ours, theirs = first.tensors(), second.tensors()
    assert ours.keys() == theirs.keys()
    assert ("optimizer.0.momentum_buffer" in ours) == bool(momentum)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
