"""Sharpness-aware minimisation: descend by the gradient that the worst weights nearby have.

What is learnt so lies in flat valleys of the loss, whose walls a new image is less likely to meet.
A step takes twice as long. Source: Foret et al. 2021, "Sharpness-Aware Minimization for Efficiently
Improving Generalization".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def worst_nearby(network: nn.Module, radius: float) -> Iterator[None]:
    """Inside, the weights are `radius` farther (L2 norm over all of them) along their gradients.

    That is the worst place of that ball as far as the gradient tells. Outside they are what they
    were; batch statistics of inside count for nothing.
    """
    weights: list[torch.Tensor] = [w for w in network.parameters() if w.grad is not None]
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        before = [weight.clone() for weight in weights]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_add_(weights, torch._foreach_mul(gradients, radius / (length + 1e-12)))
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(weights, before)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
