"""A study that several processes share: a folder with Optuna's journal and a lock.

Each trial is taken under the lock, so that no cell of a grid is tried twice (Optuna's own grid
sampler may repeat cells when workers run at once) and no study exceeds its number of trials. A
trial whose process has died is recognised by its process id, and tried again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from training.errors import TrainingError, UsageError
from training.search.space import Search, cells

_NAME = "mnist"
_STARTUP_TRIALS, _WARM_UP_EPOCHS = 4, 2  # before anything is pruned


class SharedStudy:
    """An Optuna study in a folder, which other processes may use at the same time."""

    def __init__(self, search: Search) -> None:
        self._space, self._trials = search.space, search.trials
        self._grid = search.sampler == "grid"
        folder = search.folder
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = folder / "lock"
            with self._locked():
                self._study = _open(folder / "journal.log", prune=search.prune)
                self._check_plan(folder, search.plan())
                if self._grid:
                    self._enqueue_missing()
        except OSError as error:
            raise TrainingError(
                f"The study in {folder} cannot be opened: {error.strerror}. Choose another --study."
            ) from error

    def take(self, seed: int) -> optuna.Trial | None:
        """Take the next trial; None if no trial is left."""
        with self._locked():
            self._requeue_orphans()
            states = [trial.state for trial in self._study.get_trials(deepcopy=False)]
            if TrialState.WAITING not in states and (
                self._grid or len(states) - states.count(TrialState.FAIL) >= self._trials
            ):
                return None
            if not self._grid:
                self._study.sampler = _tpe(seed + len(states))
            trial = self._study.ask()
            trial.set_user_attr("process", [socket.gethostname(), os.getpid()])
        return trial

    def finish(self, trial: optuna.Trial, accuracy: float | None, state: TrialState) -> None:
        """Record the outcome of a trial."""
        self._study.tell(trial, accuracy, state)

    def finished(self) -> list[FrozenTrial]:
        """Return the finished trials, the best first: by accuracy, then by loss.

        Without those that failed because their process died.
        """
        trials = [
            trial
            for trial in self._study.get_trials()
            if trial.state.is_finished()
            and (trial.state != TrialState.FAIL or "diverged" in trial.user_attrs)
        ]
        return sorted(trials, key=_rank)

    def _check_plan(self, folder: Path, plan: dict[str, Any]) -> None:
        first_plan = self._study.user_attrs.get("plan")
        if first_plan is None:
            self._study.set_user_attr("plan", plan)
        elif first_plan != plan:
            differing = ", ".join(sorted(k for k in plan if first_plan.get(k) != plan[k]))
            raise UsageError(
                f"The study in {folder} was started with another {differing}. Choose another "
                "--study for this search, or repeat the options of the first."
            )

    def _enqueue_missing(self) -> None:
        enqueued = [
            trial.system_attrs.get("fixed_params")
            for trial in self._study.get_trials(deepcopy=False)
        ]
        for cell in cells(self._space):
            if cell not in enqueued:
                self._study.enqueue_trial(cell)

    def _requeue_orphans(self) -> None:
        """Fail the trials of dead processes of this machine, and enqueue them again."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            host, process = trial.user_attrs.get("process", ("", 0))
            if host == socket.gethostname() and not _is_alive(process):
                self._study.tell(trial.number, state=TrialState.FAIL)
                self._study.enqueue_trial(trial.system_attrs.get("fixed_params", trial.params))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _open(journal: Path, *, prune: bool) -> optuna.Study:
    pruner = (
        optuna.pruners.MedianPruner(_STARTUP_TRIALS, _WARM_UP_EPOCHS)
        if prune
        else optuna.pruners.NopPruner()
    )
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal))),
        study_name=_NAME,
        direction="maximize",
        load_if_exists=True,
        pruner=pruner,
    )


def _tpe(seed: int) -> optuna.samplers.TPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # A running trial counts as a poor one, so that workers try different values.
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True, n_startup_trials=8)


def _rank(trial: FrozenTrial) -> tuple[int, float, float]:
    complete = trial.state == TrialState.COMPLETE
    accuracy = trial.value if complete and trial.value is not None else 0.0
    return (0 if complete else 1, -accuracy, trial.user_attrs.get("validation_loss", 0.0))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
