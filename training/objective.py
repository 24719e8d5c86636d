"""What a step minimises, and what holds weights back: of one batch, with no memory of others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.recipes.recipe import Recipe

_LABELS_ALONE = 0.25  # of a run: until then the moving average knows less than the labels


def logits_by(model: nn.Module, pixels: Tensor, bf16: bool) -> Tensor:
    """Return float32 logits [N, classes] of pixels [N,1,28,28], computed in bfloat16 or not."""
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
        return cast(Tensor, model(pixels)).float()


def objective_of(
    labels: Tensor,
    answers: Tensor | None,
    weight: float,
    network: nn.Module,
    recipe: Recipe,
    logits: Tensor,
) -> Tensor:
    """What is minimised: the loss of (smoothed) labels and of answers, and the penalty.

    `weight` is what the mean over the images counts: not 1 where processes have shares of a batch
    that differ by an image.
    """
    smoothing = recipe.label_smoothing
    losses = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    if answers is not None:
        taught = functional.cross_entropy(logits, answers, reduction="none")
        losses = torch.lerp(losses, taught, recipe.self_distillation)
    return losses.mean() * weight + penalty(network, recipe)


@torch.no_grad()
def answers_of(
    used: nn.Module, pixels: Tensor, recipe: Recipe, bf16: bool, done: float
) -> Tensor | None:
    """What the moving average of the weights makes of the images: probabilities [N, classes].

    None where nothing is learnt from it, or not yet: `done` is the share of the run. To learn from
    one's own average as well weakens what only a wrong label teaches. Source: Tarvainen & Valpola
    2017, "Mean teachers are better role models", whose images have no labels.
    """
    if not recipe.self_distillation or done < _LABELS_ALONE:
        return None
    return torch.softmax(logits_by(used.eval(), pixels, bf16), 1)


def penalty(network: nn.Module, recipe: Recipe) -> Tensor | float:
    """L1 and L2 regularisation: what is added to the loss for the size of the weights."""
    total: Tensor | float = 0.0
    if recipe.l1:
        total = total + recipe.l1 * sum(weight.abs().sum() for weight in _weights(network))
    if recipe.l2:
        total = total + recipe.l2 * sum(weight.square().sum() for weight in _weights(network))
    return total


@torch.no_grad()
def limit_norms(network: nn.Module, longest: float) -> None:
    """Max-norm: project each unit's vector of incoming weights back into a ball (Srebro 2005)."""
    for weight in _weights(network):
        weight.copy_(torch.renorm(weight, 2, 0, longest))


def _weights(network: nn.Module) -> Iterator[Tensor]:
    """Weights of layers: neither biases nor the two vectors of a batch norm."""
    return (parameter for parameter in network.parameters() if parameter.ndim > 1)
