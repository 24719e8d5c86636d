"""What a search prints and writes at its end."""

from __future__ import annotations

import io
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from PIL import Image

from training.data.dataset import DataSet
from training.errors import TrainingError
from training.recipes.presets import RECIPES
from training.search.results import BEST_FILE, write_results
from training.search.space import Search, parse_varied

NOTHING = torch.empty(0)
LISTS = ("lr=0.1,0.2", "activation=relu,tanh")


def search_of(folder: Path, *space: str) -> Search:
    return Search(
        recipe=RECIPES["tiny"],
        space=tuple(map(parse_varied, space)),
        data=DataSet(NOTHING, NOTHING, NOTHING, NOTHING, sha256={}),
        seed=0,
        folder=folder,
        sampler="grid",
        trials=4,
        prune=False,
    )


def trial_of(
    search: Search,
    number: int,
    *values: Any,
    accuracy: float | None = None,
    diverged: bool = False,
) -> FrozenTrial:
    """A trial that completed with an accuracy, or was pruned or diverged without one."""
    attributes = {"validation_loss": 0.25} if accuracy is not None else {}
    trial = create_trial(
        state=TrialState.PRUNED if accuracy is None else TrialState.COMPLETE,
        value=accuracy,
        params={varied.name: value for varied, value in zip(search.space, values, strict=True)},
        distributions={
            varied.name: (
                CategoricalDistribution(varied.choices)
                if varied.choices
                else FloatDistribution(varied.low, varied.high)
            )
            for varied in search.space
        },
        user_attrs=attributes | ({"diverged": True} if diverged else {}),
    )
    trial.number = number
    return trial


def test_trials_are_written_in_their_order_with_their_outcomes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = search_of(tmp_path, *LISTS)
    trials = [
        trial_of(search, 2, "0.2", "relu", accuracy=0.75),
        trial_of(search, 0, "0.1", "tanh"),
        trial_of(search, 1, "0.2", "tanh", diverged=True),
    ]
    write_results(search, trials, {})
    assert json.loads((tmp_path / "trials.json").read_text()) == [
        {
            "trial": 2,
            "learning_rate": 0.2,
            "activation": "relu",
            "outcome": "complete",
            "validation_accuracy": 0.75,
            "validation_loss": 0.25,
        },
        {
            "trial": 0,
            "learning_rate": 0.1,
            "activation": "tanh",
            "outcome": "pruned",
            "validation_accuracy": None,
            "validation_loss": None,
        },
        {
            "trial": 1,
            "learning_rate": 0.2,
            "activation": "tanh",
            "outcome": "diverged",
            "validation_accuracy": None,
            "validation_loss": None,
        },
    ]
    printed = capsys.readouterr()
    assert "75.00%" in printed.out
    assert "diverged" in printed.out
    assert f"mnist-train --config {tmp_path / BEST_FILE}" in printed.err


def test_best_file_has_the_changes_and_the_values_of_the_first_complete_trial(
    tmp_path: Path,
) -> None:
    search = search_of(tmp_path, *LISTS)
    trials = [
        trial_of(search, 0, "0.1", "relu"),
        trial_of(search, 1, "0.2", "tanh", accuracy=0.5),
        trial_of(search, 2, "0.1", "tanh", accuracy=0.4),
    ]
    write_results(search, trials, {"epochs": 7, "learning_rate": 9.0})
    text = (tmp_path / BEST_FILE).read_text()
    best = tomllib.loads(text)
    assert (best["recipe"], best["epochs"]) == ("tiny", 7)
    assert (best["learning_rate"], best["activation"]) == (0.2, "tanh")
    assert "Trial 1" in text
    assert "50.00%" in text


@pytest.mark.parametrize(
    ("space", "values", "drawn"),
    [
        (LISTS, ("0.1", "relu"), True),
        (("lr=0.1,0.2",), ("0.1",), False),
        (("lr=0.1:0.2", "activation=relu"), (0.15, "relu"), False),
    ],
)
def test_two_lists_have_a_heat_map(
    tmp_path: Path, space: tuple[str, ...], values: tuple[Any, ...], drawn: bool
) -> None:
    search = search_of(tmp_path, *space)
    write_results(search, [trial_of(search, 0, *values, accuracy=0.5)], {})
    picture = tmp_path / "heatmap.png"
    assert picture.exists() == drawn
    if drawn:
        assert Image.open(io.BytesIO(picture.read_bytes())).format == "PNG"


def test_search_without_a_complete_trial_fails_but_writes_its_trials(tmp_path: Path) -> None:
    search = search_of(tmp_path, *LISTS)
    with pytest.raises(TrainingError, match="No trial completed"):
        write_results(search, [trial_of(search, 0, "0.1", "relu")], {})
    assert len(json.loads((tmp_path / "trials.json").read_text())) == 1
    assert not (tmp_path / BEST_FILE).exists()


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    search = search_of(tmp_path / "missing", *LISTS)
    with pytest.raises(TrainingError, match="missing cannot be written"):
        write_results(search, [trial_of(search, 0, "0.1", "relu", accuracy=0.5)], {})
