"""The training loop, whole: top to bottom in `train`.

Everything random comes from the seed, in a fixed order, with deterministic algorithms: the same
seed, versions, machine and number of threads give the same weights, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.augment import augment
from training.checkpoint import Saved
from training.data import DataSet
from training.errors import DivergedError, UsageError
from training.evaluate import logits_of, loss_and_accuracy
from training.models import scale
from training.recipes import FULL_BATCH, Recipe
from training.state import Trained, TrainingState, begin


class Split(NamedTuple):
    """The training images cut in two: to learn from, and held out. uint8 [N,28,28], int64 [N]."""

    images: Tensor
    labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor


class Watcher(Protocol):
    """Who is told how the run goes."""

    def begin(self, state: TrainingState) -> None:
        """Tell of the state before the first step of a new run."""

    def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        """So many images of this epoch are done, with this mean loss and share of right answers."""

    def epoch(self, state: TrainingState, figures: dict[str, Any]) -> None:
        """Tell of the end of an epoch: everything needed to go on from it, and its figures."""

    def stopping(self) -> bool:
        """Whether to stop after this batch."""


class Interrupted(Exception):
    """The watcher wanted to stop; carries the weights reached and the epochs completed."""

    def __init__(self, reached: Trained) -> None:
        super().__init__("interrupted")
        self.reached = reached


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


def train(
    recipe: Recipe,
    data: DataSet,
    seed: int,
    device: torch.device,
    watcher: Watcher,
    saved: Saved | None = None,
) -> Trained:
    """Train a network and return the weights to use (their moving average where there is one).

    They are the last epoch's, or with early stopping those of the epoch with the lowest validation
    loss: nothing is chosen by looking at the test set. A run goes on from what was `saved` bit for
    bit. Raises DivergedError when the loss stops being a number, Interrupted when the watcher wants
    to stop.
    """
    torch.use_deterministic_algorithms(mode=True)
    cut = split(data, recipe)
    images, labels = cut.images.to(device), cut.labels.to(device)
    batch_size = len(images) if recipe.batch_size == FULL_BATCH else recipe.batch_size
    rate = _schedule(recipe, math.ceil(len(images) / batch_size) * recipe.epochs)
    state = begin(recipe, len(data.labels), seed, device)
    if saved:
        state.restore(saved.numbers, saved.tensors)
    else:
        watcher.begin(state)
    network, optimizer = state.network, state.optimizer

    while state.epoch < recipe.epochs and not _out_of_patience(state, recipe):
        epoch = state.epoch + 1
        started = time.perf_counter()
        torch.manual_seed(seed * 1_000_003 + epoch)  # for dropout
        network.train()
        loss_sum, correct, seen = 0.0, 0, 0
        for chosen in torch.randperm(len(images), generator=state.random).split(batch_size):
            chosen = chosen.to(device)  # noqa: PLW2901
            pixels = augment(scale(images[chosen]), recipe, state.random)
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            logits = network(pixels)
            loss = functional.cross_entropy(
                logits, labels[chosen], label_smoothing=recipe.label_smoothing
            )
            for group in optimizer.param_groups:
                group["lr"] = rate(state.step)
            optimizer.zero_grad()
            (loss + penalty(network, recipe)).backward()
            optimizer.step()
            if recipe.max_norm:
                limit_norms(network, recipe.max_norm)
            state.step += 1
            if recipe.ema_decay:
                _move_average(state.used, network, recipe.ema_decay, state.step)

            value = loss.item()
            if not math.isfinite(value):
                raise _diverged(f"The loss became {value} in epoch {epoch}", recipe)
            # The mean over images, not over batches: the last batch may be smaller. Without the
            # penalty, so that it can be compared with the validation loss.
            loss_sum += value * len(chosen)
            correct += int((logits.argmax(1) == labels[chosen]).sum())
            seen += len(chosen)
            watcher.step(epoch, seen, loss_sum / seen, correct / seen)
            if watcher.stopping():
                raise Interrupted(Trained(state.used, state.epoch))

        if not all(bool(weight.isfinite().all()) for weight in state.used.parameters()):
            raise _diverged(f"Weights became infinite in epoch {epoch}", recipe)
        state.epoch = epoch
        figures = {
            "epoch": epoch,
            "train_loss": loss_sum / seen,
            "train_accuracy": correct / seen,
            **_figures(
                "validation", state.used, cut.validation_images, cut.validation_labels, device
            ),
            "learning_rate": rate(state.step - 1),
            "seconds": round(time.perf_counter() - started, 3),
        }
        if recipe.report_test_each_epoch:
            figures |= _figures("test", state.used, data.test_images, data.test_labels, device)
        if recipe.patience:
            state.keep_if_best(figures["validation_loss"])
        watcher.epoch(state, figures)
    return state.result()


def _out_of_patience(state: TrainingState, recipe: Recipe) -> bool:
    return bool(recipe.patience) and state.epoch - state.best_epoch >= recipe.patience


def _diverged(what: str, recipe: Recipe) -> DivergedError:
    return DivergedError(
        f"{what}. Choose a smaller --lr than {recipe.learning_rate}; the last checkpoint is that "
        "of the epoch before."
    )


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


def _figures(
    name: str, network: nn.Module, images: Tensor, labels: Tensor, device: torch.device
) -> dict[str, float]:
    if not len(images):
        return {}
    loss, accuracy = loss_and_accuracy(logits_of(network, images, device), labels)
    return {f"{name}_loss": loss, f"{name}_accuracy": accuracy}


def _schedule(recipe: Recipe, steps: int) -> Callable[[int], float]:
    """Learning rate by step: constant, or one cycle (Smith 2018), linear up and cosine down."""
    peak = recipe.learning_rate
    if recipe.schedule == "constant":
        return lambda step: peak
    warm_up = max(1, round(0.2 * steps))

    def one_cycle(step: int) -> float:
        if step < warm_up:
            return peak * (0.04 + 0.96 * step / warm_up)
        rest = (step - warm_up) / max(1, steps - warm_up)
        return peak * 0.5 * (1 + math.cos(math.pi * rest))

    return one_cycle


@torch.no_grad()
def _move_average(used: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of weights and of batch norm statistics, faster at the start."""
    decay = min(decay, (1 + step) / (10 + step))
    ours, theirs = used.state_dict(), network.state_dict()
    floats = [name for name, value in ours.items() if value.is_floating_point()]
    torch._foreach_lerp_(
        [ours[name] for name in floats], [theirs[name] for name in floats], 1 - decay
    )
