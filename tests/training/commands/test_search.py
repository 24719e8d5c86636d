"""Searches on few images: grids, TPE, several processes, and processes that die."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.training.small_run import train
from training.commands import search
from training.errors import UsageError
from training.search.space import cells, parse_varied

SMALL = [
    *("--recipe", "book-30-30", "--epochs", "2", "--train-limit", "300", "--threads", "1"),
    *("--validation-size", "500"),
]
GRID = ["--vary", "lr=0.01,0.3", "--vary", "batch_size=16,full"]


def trials_of(study: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((study / "trials.json").read_text())
    return found


def test_the_values_of_a_knob_are_read() -> None:
    assert parse_varied("lr=0.1,1").choices == ("0.1", "1")
    assert parse_varied("hidden=30+30,256").value("30,30") == (30, 30)
    assert parse_varied("batch-size=full").value("full") == 0
    assert (parse_varied("lr=1e-4:0.1").low, parse_varied("lr=1e-4:0.1").high) == (1e-4, 0.1)
    assert len(cells((parse_varied("lr=1,2,3"), parse_varied("l2=0,1")))) == 6
    for wrong in ("speed=3", "lr=", "lr=fast", "lr=2:1", "activation=relu:tanh", "activation=x"):
        with pytest.raises(UsageError):
            parse_varied(wrong)
    with pytest.raises(UsageError, match="--lr"):
        cells((parse_varied("lr=0.1:1"),))


def test_a_grid_tries_each_cell_once_and_its_best_is_a_recipe(
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

    best = study / search.BEST_FILE
    config = tomllib.loads(best.read_text())
    assert (config["recipe"], config["learning_rate"], config["batch_size"]) == (
        "book-30-30",
        0.3,
        16,
    )
    run = train(tmp_path, "--config", str(best), "--no-publish", "--threads", "1")
    recipe = json.loads((run / "config.json").read_text())["recipe"]
    assert (recipe["name"], recipe["learning_rate"], recipe["epochs"]) == ("book-30-30", 0.3, 2)
    # The search judged by the same images as the run reports: the figures are the same.
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["validation_accuracy"] == accuracies[0]

    # Asked again, there is nothing left to try; and another search is not mixed into this one.
    before = (study / "trials.json").read_bytes()
    assert search.main([*SMALL, *GRID, "--study", str(study)]) == 0
    assert (study / "trials.json").read_bytes() == before
    assert search.main([*SMALL, *GRID, "--l2", "0.1", "--study", str(study)]) == 2
    assert "another recipe" in capsys.readouterr().err


def test_tpe_searches_a_range_and_prunes_or_marks_what_fails(tmp_path: Path) -> None:
    study = tmp_path / "study"
    space = ["--vary", "lr=0.001:100", "--vary", "activation=relu,sigmoid"]
    flags = ["--sampler", "tpe", "--trials", "12", "--epochs", "4", "--study", str(study)]
    assert search.main([*SMALL, *space, *flags]) == 0
    trials = trials_of(study)
    assert len(trials) == 12
    assert all(0.001 <= t["learning_rate"] <= 100 for t in trials)
    outcomes = {t["outcome"] for t in trials}
    assert "complete" in outcomes
    assert "pruned" in outcomes
    assert not (study / "heatmap.png").exists()  # one of the two has no columns
    assert train(tmp_path, "--config", str(study / search.BEST_FILE), "--no-publish")


def test_a_search_begins_from_a_file_and_keeps_what_it_says(tmp_path: Path) -> None:
    path, study = tmp_path / "base.toml", tmp_path / "study"
    path.write_text(
        "recipe = 'book-30-30'\nl2 = 0.001\nhidden = [9]\ntrain_limit = 100\nepochs = 1"
    )
    arguments = ["--config", str(path), "--vary", "lr=0.1", "--threads", "1"]
    assert search.main([*arguments, "--study", str(study)]) == 0
    best = tomllib.loads((study / search.BEST_FILE).read_text())
    assert best == {
        "recipe": "book-30-30",
        "hidden": [9],
        "epochs": 1,
        "learning_rate": 0.1,
        "l2": 0.001,
        "train_limit": 100,
    }


def test_a_diverging_cell_is_marked_and_not_the_best(tmp_path: Path) -> None:
    study = tmp_path / "study"
    space = ["--vary", "lr=0.1,1e30", "--vary", "l1=0"]
    assert search.main([*SMALL, *space, "--study", str(study)]) == 0
    assert [t["outcome"] for t in trials_of(study)] == ["complete", "diverged"]
    assert search.main([*SMALL, "--vary", "lr=1e30", "--study", str(tmp_path / "no")]) == 1


def test_two_processes_share_a_grid_and_a_killed_one_is_made_up_for(tmp_path: Path) -> None:
    study = tmp_path / "study"
    grid = ["--vary", "lr=0.01,0.03,0.1,0.3", "--vary", "batch_size=16,64", "--study", str(study)]
    arguments = [*SMALL, *grid, "--no-prune", "--epochs", "30"]  # long enough to be killed in
    with subprocess.Popen(
        [sys.executable, "-m", "training.commands.search", *arguments], stderr=subprocess.PIPE
    ) as job:
        journal = study / "journal.log"
        while not (journal.exists() and '"process"' in journal.read_text()):
            assert job.poll() is None
        job.send_signal(signal.SIGKILL)

    assert search.main([*arguments, "--workers", "2"]) == 0
    trials = trials_of(study)
    assert len({(t["learning_rate"], t["batch_size"]) for t in trials}) == len(trials) == 8
    processes = {
        json.loads(line)["user_attr"]["process"][1]
        for line in journal.read_text().splitlines()
        if '"process"' in line
    }
    assert len(processes) >= 2  # the killed one and its heirs


def test_a_config_file_that_is_wrong_is_refused_by_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.commands.train import main

    path = tmp_path / "x.toml"
    for content, message in (
        ("speed = 3", "no knob 'speed'"),
        ("epochs = 'many'", "epochs is 'many'"),
        ("epochs = ", "is not TOML"),
        ("recipe = 'none'", "no recipe 'none'"),
        ("learning_rate = -1", "--lr is -1"),
    ):
        path.write_text(content)
        assert main(["--config", str(path), "--runs", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err
    path.write_text("recipe = 'book-30-30'\nbatch_size = 'full'\nhidden = [9]\nlr = 1\nepochs = 1")
    run = train(tmp_path, "--config", str(path), "--train-limit", "100", "--no-publish")
    recipe = json.loads((run / "config.json").read_text())["recipe"]
    assert (recipe["batch_size"], recipe["hidden"], recipe["learning_rate"]) == (0, [9], 1.0)
