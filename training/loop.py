"""The training loop, whole: top to bottom in `train`.

Everything random comes from the seed, in a fixed order, with deterministic algorithms: the same
seed, versions, machine and number of threads give the same weights, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.data.augment import deform, draw
from training.data.dataset import DataSet, Split, split
from training.errors import DivergedError, UsageError
from training.evaluation.metrics import logits_of, loss_and_accuracy
from training.hardware import be_deterministic, computes_bf16
from training.models import scale
from training.objective import answers_of, limit_norms, logits_by, objective_of
from training.processes import Processes
from training.recipes.recipe import FULL_BATCH, Recipe
from training.run.checkpoint import Saved
from training.sharpness import worst_nearby
from training.state import Trained, TrainingState, begin

ALONE = Processes()
_WARM_UP = 0.2  # of a one-cycle run


class Watcher(Protocol):
    """Who is told how the run goes."""

    def begin(self, state: TrainingState) -> None:
        """Tell of the state before the first step of a new run."""

    def step(self, epochs: float, images: int, loss: float, accuracy: float) -> None:
        """So many epochs of the run are done, the last of them in part.

        Of that one come the number of images, their mean loss and share of right answers.
        """

    def epoch(self, state: TrainingState, figures: dict[str, Any]) -> None:
        """Tell of the end of an epoch: everything needed to go on from it, and its figures."""

    def stopping(self) -> bool:
        """Whether to stop after this batch."""


class Interrupted(Exception):
    """The watcher wanted to stop; carries the weights reached and the epochs completed."""

    def __init__(self, reached: Trained) -> None:
        super().__init__("interrupted")
        self.reached = reached


def train(
    recipe: Recipe,
    data: DataSet,
    seed: int,
    device: torch.device,
    watcher: Watcher,
    saved: Saved | None = None,
    processes: Processes = ALONE,
) -> Trained:
    """Train a network and return the weights to use (their moving average where there is one).

    They are the last epoch's, or with early stopping those of the epoch with the lowest validation
    loss: nothing is chosen by looking at the test set. A run goes on from what was `saved` bit for
    bit. Many processes share each batch, and the first evaluates. Raises DivergedError when the
    loss stops being a number, Interrupted when the watcher wants to stop.
    """
    be_deterministic()
    cut = split(data, recipe)
    images, labels = cut.images.to(device), cut.labels.to(device)
    batch_size = _batch_size(recipe, len(images), processes)
    rate_at, bf16 = _schedule(recipe), recipe.bf16 and computes_bf16(device)
    state = begin(recipe, len(data.labels), len(images), seed, device)
    if saved:
        state.restore(saved.numbers, saved.tensors)
    else:
        watcher.begin(state)
    network, model = state.network, processes.wrap(state.network)

    while state.epoch < recipe.epochs and not _out_of_patience(state, recipe):
        epoch = state.epoch + 1
        started = time.perf_counter()
        torch.manual_seed(seed * 1_000_003 + epoch + processes.rank * 7_919)  # for dropout
        network.train()
        loss_sum, correct, seen, rate = 0.0, 0.0, 0, 0.0
        order = state.sampler.order(state.random, at_least=processes.size)
        for done, batch in _batches(order, batch_size, processes):
            draws = processes.share(draw(recipe, len(batch), state.random))
            mine = processes.share(batch)
            chosen = mine.to(device)
            done_of_run = (state.epoch + done) / recipe.epochs
            pixels = _augmented(images[chosen], draws, recipe, done_of_run)
            forward = partial(logits_by, model, pixels, bf16)
            logits = forward()
            # Plain, so that it can be compared with the validation loss and says what is easy.
            losses = functional.cross_entropy(logits.detach(), labels[chosen], reduction="none")
            state.sampler.saw(mine, losses)
            rate = rate_at(done_of_run)
            # Gradients are averaged over processes, whose shares may differ by an image.
            weight = len(chosen) * processes.size / len(batch)
            answers = answers_of(state.used, pixels, recipe, bf16, done_of_run)
            objective = partial(objective_of, labels[chosen], answers, weight, network, recipe)
            _descend(state, objective, logits, forward, rate, recipe)

            # The mean over images, not over batches: the last batch may be smaller.
            summed, right, stop = processes.total(
                losses.sum().item(),
                int((logits.argmax(1) == labels[chosen]).sum()),
                float(watcher.stopping()),
                device=device,
            )
            if not math.isfinite(summed):
                raise _diverged(f"The loss became {summed / len(batch)} in epoch {epoch}", recipe)
            loss_sum, correct, seen = loss_sum + summed, correct + right, seen + len(batch)
            watcher.step(state.epoch + seen / len(order), seen, loss_sum / seen, correct / seen)
            if stop:
                raise Interrupted(Trained(state.used, state.epoch))

        _end_epoch(state, recipe, processes, device)
        state.epoch = epoch
        figures = {
            "epoch": epoch,
            "train_loss": loss_sum / seen,
            "train_accuracy": correct / seen,
            "learning_rate": rate,
            "images": seen,
        }
        if processes.is_first:
            figures |= _evaluated(state.used, cut, data, recipe, device)
        figures["seconds"] = round(time.perf_counter() - started, 3)
        if recipe.patience:
            state.keep_if_best(processes.of_first(figures.get("validation_loss", 0.0), device))
        watcher.epoch(state, figures)
    return state.result()


def _batch_size(recipe: Recipe, images: int, processes: Processes) -> int:
    size = images if recipe.batch_size == FULL_BATCH else min(recipe.batch_size, images)
    if size < processes.size:
        raise UsageError(
            f"{processes.size} processes cannot share a batch of {size}; choose a larger "
            "--batch-size, or start fewer."
        )
    return size


def _batches(order: Tensor, size: int, processes: Processes) -> Iterator[tuple[float, Tensor]]:
    """Give the share of the epoch that is done before each batch, and the batch."""
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        # Else a few images are left over, and there is not one for each process.
        if len(batch) >= processes.size:
            yield start / len(order), batch


def _augmented(images: Tensor, draws: Tensor, recipe: Recipe, done: float) -> Tensor:
    """Return pixels [N,1,28,28] of images that are deformed but at the end of the run."""
    pixels = scale(images)
    return pixels if done >= 1 - recipe.plain_end else deform(pixels, draws, recipe)


def _descend(
    state: TrainingState,
    objective: Callable[[Tensor], Tensor],
    logits: Tensor,
    forward: Callable[[], Tensor],
    rate: float,
    recipe: Recipe,
) -> None:
    """One step of the optimiser, and what comes after each. Moved weights go `forward` again."""
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.zero_grad()
    objective(logits).backward()
    if recipe.sharpness:
        with worst_nearby(state.network, recipe.sharpness):
            worst = objective(forward())
            state.optimizer.zero_grad()
            worst.backward()
    state.optimizer.step()
    state.step += 1
    if recipe.max_norm:
        limit_norms(state.network, recipe.max_norm)
    if recipe.ema_decay:
        _move_average(state.used, state.network, recipe.ema_decay, state.step)


def _end_epoch(
    state: TrainingState, recipe: Recipe, processes: Processes, device: torch.device
) -> None:
    """Give processes one state; keep infinite weights from taking a good one's place."""
    state.sampler.end_epoch(processes.highest(state.sampler.fresh, device))
    processes.as_first(state.used)  # which the first one saves
    if not all(bool(weight.isfinite().all()) for weight in state.used.parameters()):
        raise _diverged(f"Weights became infinite in epoch {state.epoch + 1}", recipe)


def _out_of_patience(state: TrainingState, recipe: Recipe) -> bool:
    return bool(recipe.patience) and state.epoch - state.best_epoch >= recipe.patience


def _diverged(what: str, recipe: Recipe) -> DivergedError:
    return DivergedError(
        f"{what}. Choose a smaller --lr than {recipe.learning_rate}; the last checkpoint is that "
        "of the epoch before."
    )


def _evaluated(
    network: nn.Module, cut: Split, data: DataSet, recipe: Recipe, device: torch.device
) -> dict[str, float]:
    held_out = cut.validation_images, cut.validation_labels
    figures = _figures("validation", network, *held_out, device)
    if recipe.report_test_each_epoch:
        figures |= _figures("test", network, data.test_images, data.test_labels, device)
    return figures


def _figures(
    name: str, network: nn.Module, images: Tensor, labels: Tensor, device: torch.device
) -> dict[str, float]:
    if not len(images):
        return {}
    loss, accuracy = loss_and_accuracy(logits_of(network, images, device), labels)
    return {f"{name}_loss": loss, f"{name}_accuracy": accuracy}


def _schedule(recipe: Recipe) -> Callable[[float], float]:
    """Learning rate by share of the run that is done, 0 to 1, whatever an epoch's number of steps.

    Constant, or one cycle (Smith 2018), linear up and cosine down.
    """
    peak = recipe.learning_rate
    if recipe.schedule == "constant":
        return lambda done: peak

    def one_cycle(done: float) -> float:
        if done < _WARM_UP:
            return peak * (0.04 + 0.96 * done / _WARM_UP)
        rest = (done - _WARM_UP) / (1 - _WARM_UP)
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
