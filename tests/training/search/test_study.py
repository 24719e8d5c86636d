"""A study shared by several processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from tests.training.search.searches import SMALL, trials_of
from training.commands import search


def test_processes_share_a_grid_and_redo_the_trial_of_a_killed_one(tmp_path: Path) -> None:
    study = tmp_path / "study"
    grid = ["--vary", "lr=0.01,0.1,0.3", "--vary", "batch_size=16,64", "--study", str(study)]
    # Long enough to be killed.
    arguments = [*SMALL, *grid, "--no-prune", "--epochs", "30"]
    with subprocess.Popen(
        [sys.executable, "-m", "training.commands.search", *arguments], stderr=subprocess.PIPE
    ) as job:
        journal = study / "journal.log"
        while not (journal.exists() and '"process"' in journal.read_text()):
            assert job.poll() is None
        job.send_signal(signal.SIGKILL)

    assert search.main([*arguments, "--workers", "2"]) == 0
    trials = trials_of(study)
    assert len({(t["learning_rate"], t["batch_size"]) for t in trials}) == len(trials) == 6
    processes = {
        json.loads(line)["user_attr"]["process"][1]
        for line in journal.read_text().splitlines()
        if '"process"' in line
    }
    assert len(processes) >= 2  # the killed one and its successors
