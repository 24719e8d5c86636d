"""The trials of a search: each trains one recipe and is judged on the validation images."""

from __future__ import annotations

import sys
import time

import optuna
import torch
from optuna.trial import TrialState

from training.data.dataset import split
from training.errors import DivergedError
from training.evaluation.metrics import logits_of, loss_and_accuracy
from training.loop import train
from training.recipes.recipe import changed
from training.search.space import Search
from training.search.study import SharedStudy
from training.state import EpochMetrics, Run, TrainingState, begin


def run_trials(search: Search, study: SharedStudy, device: torch.device, sampler_seed: int) -> None:
    """Run trials until the study has no more."""
    while trial := study.take(sampler_seed):
        started = time.perf_counter()
        try:
            loss, accuracy = _run_trial(search, trial, device)
        except optuna.TrialPruned:
            study.finish(trial, None, TrialState.PRUNED)
            outcome = "pruned"
        except DivergedError:
            trial.set_user_attr("diverged", value=True)
            study.finish(trial, None, TrialState.FAIL)
            outcome = "diverged"
        else:
            study.finish(trial, accuracy, TrialState.COMPLETE)
            outcome = f"validation accuracy {accuracy:.2%}, loss {loss:.4f}"
        values = ", ".join(f"{name} {value}" for name, value in trial.params.items())
        seconds = time.perf_counter() - started
        print(f"trial {trial.number}: {values}: {outcome}, {seconds:.1f} s", file=sys.stderr)


def _run_trial(search: Search, trial: optuna.Trial, device: torch.device) -> tuple[float, float]:
    """Train with the values of a trial and return the validation loss and accuracy.

    Raises optuna.TrialPruned after an epoch with an accuracy below the median of other trials.
    """

    def prune(state: TrainingState, metrics: EpochMetrics) -> None:
        assert metrics.validation_accuracy is not None  # a search has validation images
        trial.report(metrics.validation_accuracy, state.epoch)
        if trial.should_prune():
            raise optuna.TrialPruned

    changes = {varied.name: varied.suggest(trial) for varied in search.space}
    recipe = changed(search.recipe, changes)
    run = Run(recipe=recipe, split=split(search.data, recipe), seed=search.seed, device=device)
    state = begin(run)
    train(run, state, on_epoch=prune)
    trained = state.result()
    logits = logits_of(trained.network, run.split.validation_images, device)
    logits = logits[:, : len(search.data.labels)]
    loss, accuracy = loss_and_accuracy(logits, run.split.validation_labels)
    trial.set_user_attr("validation_loss", loss)
    trial.set_user_attr("epochs", trained.epoch)
    return loss, accuracy
