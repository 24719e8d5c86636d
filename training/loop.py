"""The training loop, from the first forward pass to the last moving average, in `train`.

All randomness comes from the seed and is drawn in a fixed order, and all algorithms are
deterministic: the same seed, versions, machine and number of threads give the same weights, bit
for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from training.data.augment import deform, draw
from training.errors import DivergedError, UsageError
from training.evaluation.metrics import logits_of, loss_and_accuracy
from training.hardware import be_deterministic, computes_bf16
from training.models import scale
from training.processes import Processes
from training.recipes.recipe import FULL_BATCH, Recipe
from training.state import EpochMetrics, Run, TrainingState

ALONE = Processes()
_WARM_UP = 0.2  # of a one-cycle run
_LOOKS_AT = 2500  # of the validation images, after epochs on which nothing depends
_LABELS_ALONE = 0.25  # of a run: before that the moving average is worse than the labels


class StepMetrics(NamedTuple):
    """Means over the part of an epoch that is done; `epochs` is that of the run, as a fraction."""

    epochs: float
    images: int
    loss: float
    accuracy: float


def train(  # noqa: PLR0912, PLR0915 - one story, top to bottom
    run: Run,
    state: TrainingState,
    *,
    processes: Processes = ALONE,
    on_step: Callable[[StepMetrics], None] = lambda metrics: None,
    on_epoch: Callable[[TrainingState, EpochMetrics], None] = lambda state, metrics: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train `state` in place until the end of the run; its `result` has the weights to use.

    Returns whether the run reached its end: False once `should_stop`, called after each batch, is
    true in any process. Several processes share each batch, and the first one evaluates. Raises
    DivergedError when the loss or a weight is no longer finite.
    """
    be_deterministic()
    recipe, split, device = run.recipe, run.split, run.device
    images, labels = split.images.to(device), split.labels.to(device)
    batch_size = len(images) if recipe.batch_size == FULL_BATCH else recipe.batch_size
    batch_size = min(batch_size, len(images))
    if batch_size < processes.size:
        raise UsageError(
            f"{processes.size} processes cannot share a batch of {batch_size}; choose a larger "
            "--batch-size, or start fewer."
        )
    bf16 = recipe.bf16 and computes_bf16(device)
    network, averaged, optimizer = state.network, state.averaged, state.optimizer
    parallel = processes.wrap(network)  # its backward pass averages gradients over processes
    weights, averages = _floats(network), _floats(averaged)
    classes = len(split.data.labels)  # without those of outliers

    def forward(module: nn.Module, pixels: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return cast(Tensor, module(pixels)).float()

    def loss_of(
        logits: Tensor, targets: Tensor, soft_targets: Tensor | None, weight: float
    ) -> Tensor:
        smoothing = recipe.label_smoothing
        losses = cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
        if soft_targets is not None:
            distilled = cross_entropy(logits, soft_targets, reduction="none")
            losses = torch.lerp(losses, distilled, recipe.self_distillation)
        return losses.mean() * weight + penalty(network, recipe)

    while state.epoch < recipe.epochs:
        if recipe.patience and state.epoch - state.best_epoch >= recipe.patience:
            break
        epoch, started = state.epoch + 1, time.perf_counter()
        torch.manual_seed(run.seed * 1_000_003 + epoch + processes.rank * 7_919)  # for dropout
        network.train()
        loss_sum, correct, seen, rate = 0.0, 0.0, 0, 0.0
        order = state.sampler.order(state.random, at_least=processes.size)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            if len(batch) < processes.size:
                break  # a last batch without an image for each process
            done = (state.epoch + start / len(order)) / recipe.epochs  # of the run

            # The shard of this process. Every process draws for the whole batch, so that all
            # generators stay equal. The last epochs may be without augmentation.
            draws = processes.shard(draw(recipe, len(batch), state.random))
            shard = processes.shard(batch)
            on_device = shard.to(device)
            targets, pixels = labels[on_device], scale(images[on_device])
            if done < 1 - recipe.plain_end:
                pixels = deform(pixels, draws, recipe)
            pixels = pixels.contiguous(memory_format=torch.channels_last)

            # Forward pass. The unsmoothed loss is comparable with the validation loss, and what
            # the sampler selects by.
            logits = forward(parallel, pixels)
            losses = cross_entropy(logits.detach(), targets, reduction="none")
            state.sampler.record(shard, losses)

            # Self-distillation: soft targets from the EMA weights. They dampen the effect of wrong
            # labels (Tarvainen & Valpola 2017, "Mean teachers are better role models").
            soft_targets = None
            if recipe.self_distillation and done >= _LABELS_ALONE:
                with torch.no_grad():
                    soft_targets = torch.softmax(forward(averaged.eval(), pixels), 1)

            # Backward pass. Gradients are averaged over processes, whose shards may differ by an
            # image. With SAM only the gradient at the perturbed weights counts.
            weight = len(shard) * processes.size / len(batch)
            optimizer.zero_grad()
            loss_of(logits, targets, soft_targets, weight).backward()
            if recipe.sharpness:
                with perturbed(network, recipe.sharpness):
                    loss = loss_of(forward(parallel, pixels), targets, soft_targets, weight)
                    optimizer.zero_grad()
                    loss.backward()

            # Optimiser step, max-norm, moving average (which moves faster in the first steps).
            rate = learning_rate(recipe, done)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            state.step += 1
            if recipe.max_norm:
                limit_norms(network, recipe.max_norm)
            if recipe.ema_decay:
                decay = min(recipe.ema_decay, (1 + state.step) / (10 + state.step))
                torch._foreach_lerp_(averages, weights, 1 - decay)

            # Metrics are means over images, not over batches: the last batch may be smaller.
            batch_loss, batch_correct, stops = processes.total(
                losses.sum().item(),
                int((logits.argmax(1) == targets).sum()),
                float(should_stop()),
                device=device,
            )
            if not math.isfinite(batch_loss):
                raise _diverged(
                    f"The loss became {batch_loss / len(batch)} in epoch {epoch}", recipe
                )
            loss_sum += batch_loss
            correct += batch_correct
            seen += len(batch)
            step_metrics = StepMetrics(
                epochs=state.epoch + seen / len(order),
                images=seen,
                loss=loss_sum / seen,
                accuracy=correct / seen,
            )
            on_step(step_metrics)
            if stops:
                return False

        # All processes continue with the same losses and batch statistics.
        state.sampler.end_epoch(processes.highest(state.sampler.recorded, device))
        processes.broadcast_buffers(averaged)
        if not all(bool(values.isfinite().all()) for values in averaged.parameters()):
            raise _diverged(f"Weights became infinite in epoch {epoch}", recipe)
        state.epoch = epoch

        validation_loss = validation_accuracy = test_loss = test_accuracy = None
        if processes.is_first and len(split.validation_images):
            looks_at = None if recipe.patience or epoch == recipe.epochs else _LOOKS_AT
            logits = logits_of(averaged, split.validation_images[:looks_at], device)[:, :classes]
            validation_loss, validation_accuracy = loss_and_accuracy(
                logits, split.validation_labels[:looks_at]
            )
        if processes.is_first and recipe.report_test_each_epoch:
            logits = logits_of(averaged, split.data.test_images, device)[:, :classes]
            test_loss, test_accuracy = loss_and_accuracy(logits, split.data.test_labels)
        metrics = EpochMetrics(
            epoch=epoch,
            train_loss=loss_sum / seen,
            train_accuracy=correct / seen,
            learning_rate=rate,
            images=seen,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            test_loss=test_loss,
            test_accuracy=test_accuracy,
            seconds=round(time.perf_counter() - started, 3),
        )
        if recipe.patience:
            state.keep_if_best(processes.broadcast(validation_loss or 0.0, device))
        on_epoch(state, metrics)
    return True


def learning_rate(recipe: Recipe, done: float) -> float:
    """Return the rate after the share `done`, 0 to 1, of the run.

    Constant, or one cycle (Smith 2018): a linear warm-up, then a cosine decay. It depends on the
    share, not on the step: the number of steps of an epoch may vary.
    """
    peak = recipe.learning_rate
    if recipe.schedule == "constant":
        return peak
    if done < _WARM_UP:
        return peak * (0.04 + 0.96 * done / _WARM_UP)
    decayed = (done - _WARM_UP) / (1 - _WARM_UP)
    return peak * 0.5 * (1 + math.cos(math.pi * decayed))


def penalty(network: nn.Module, recipe: Recipe) -> Tensor | float:
    """Return the L1 and L2 regularisation of the weights, to be added to the loss."""
    total: Tensor | float = 0.0
    if recipe.l1:
        total = total + recipe.l1 * sum(weight.abs().sum() for weight in _weights(network))
    if recipe.l2:
        total = total + recipe.l2 * sum(weight.square().sum() for weight in _weights(network))
    return total


@torch.no_grad()
def limit_norms(network: nn.Module, longest: float) -> None:
    """Max-norm: project the vector of each unit's incoming weights into a ball (Srebro 2005)."""
    for weight in _weights(network):
        weight.copy_(torch.renorm(weight, 2, 0, longest))


@contextmanager
def perturbed(network: nn.Module, radius: float) -> Iterator[None]:
    """Move the weights by `radius` (L2 norm over all of them) along their gradients, then back.

    To first order these are the weights with the highest loss within the radius. Their gradient
    leads to flat minima, which generalise better, at twice the time per step: Foret et al. 2021,
    "Sharpness-Aware Minimization for Efficiently Improving Generalization". Batch statistics are
    not updated meanwhile.
    """
    weights: list[Tensor] = [w for w in network.parameters() if w.grad is not None]
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


def _weights(network: nn.Module) -> Iterator[Tensor]:
    """Yield the weights of layers: no biases, and no parameters of batch normalisation."""
    return (parameter for parameter in network.parameters() if parameter.ndim > 1)


def _floats(network: nn.Module) -> list[Tensor]:
    """Return all weights and batch statistics as tensors that share the network's memory."""
    return [value for value in network.state_dict().values() if value.is_floating_point()]


def _diverged(event: str, recipe: Recipe) -> DivergedError:
    return DivergedError(
        f"{event}. Choose a smaller --lr than {recipe.learning_rate}; the last checkpoint is that "
        "of the epoch before."
    )
