"""Trials that complete, are pruned, or diverge."""

from __future__ import annotations

from pathlib import Path

from tests.training.runs import train
from tests.training.search.searches import SMALL, trials_of
from training.commands import search
from training.search.results import BEST_FILE


def test_tpe_searches_a_range_and_prunes(tmp_path: Path) -> None:
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
    assert not (study / "heatmap.png").exists()  # a range has no cells
    assert train(tmp_path, "--config", str(study / BEST_FILE), "--no-publish")


def test_diverging_trial_is_marked_and_never_the_best(tmp_path: Path) -> None:
    study = tmp_path / "study"
    space = ["--vary", "lr=0.1,1e30", "--vary", "l1=0"]
    assert search.main([*SMALL, *space, "--study", str(study)]) == 0
    assert [t["outcome"] for t in trials_of(study)] == ["complete", "diverged"]
    assert search.main([*SMALL, "--vary", "lr=1e30", "--study", str(tmp_path / "no")]) == 1
