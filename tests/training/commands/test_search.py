"""mnist-search on few images."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from tests.training.runs import train
from tests.training.search.searches import SMALL, trials_of
from training.commands import search
from training.search.results import BEST_FILE

GRID = ["--vary", "lr=0.01,0.3", "--vary", "batch_size=16,full"]


def test_grid_tries_each_cell_once_and_writes_the_best_as_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study"
    assert search.main([*SMALL, *GRID, "--study", str(study)]) == 0
    trials = trials_of(study)
    assert len({(t["learning_rate"], t["batch_size"]) for t in trials}) == len(trials) == 4
    accuracies = [t["validation_accuracy"] for t in trials]
    assert accuracies == sorted(accuracies, reverse=True)
    assert (trials[0]["learning_rate"], trials[0]["batch_size"]) == (0.3, 16)
    table = capsys.readouterr().out
    assert f"{accuracies[0]:.2%}" in table
    with Image.open(study / "heatmap.png") as image:
        assert image.format == "PNG"

    best = study / BEST_FILE
    config = tomllib.loads(best.read_text())
    assert (config["recipe"], config["learning_rate"], config["batch_size"]) == (
        "book-30-30",
        0.3,
        16,
    )
    run = train(tmp_path, "--config", str(best), "--no-publish", "--threads", "1")
    recipe = json.loads((run / "config.json").read_text())["recipe"]
    assert (recipe["name"], recipe["learning_rate"], recipe["epochs"]) == ("book-30-30", 0.3, 2)
    # The search judges on the images that the run validates on, so the accuracies are equal.
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["validation_accuracy"] == accuracies[0]

    # Repeated, the search has no trial left; another search in the same folder is refused.
    before = (study / "trials.json").read_bytes()
    assert search.main([*SMALL, *GRID, "--study", str(study)]) == 0
    assert (study / "trials.json").read_bytes() == before
    assert search.main([*SMALL, *GRID, "--l2", "0.1", "--study", str(study)]) == 2
    assert "another recipe" in capsys.readouterr().err


def test_search_keeps_the_values_of_its_config_file(tmp_path: Path) -> None:
    path, study = tmp_path / "base.toml", tmp_path / "study"
    path.write_text(
        "recipe = 'book-30-30'\nl2 = 0.001\nhidden = [9]\ntrain_limit = 100\nepochs = 1"
    )
    arguments = ["--config", str(path), "--vary", "lr=0.1", "--threads", "1"]
    assert search.main([*arguments, "--study", str(study)]) == 0
    best = tomllib.loads((study / BEST_FILE).read_text())
    assert best == {
        "recipe": "book-30-30",
        "hidden": [9],
        "epochs": 1,
        "learning_rate": 0.1,
        "l2": 0.001,
        "train_limit": 100,
    }
