"""A finished run, to look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.runs import train


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a short run."""
    arguments = ["--recipe", "mlp", "--hidden", "32", "--epochs", "2", "--train-limit", "500"]
    return train(tmp_path_factory.mktemp("report"), *arguments, "--no-publish")
