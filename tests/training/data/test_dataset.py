"""The split of the training images."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.commands.train import main


def test_validation_size_must_leave_training_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--validation-size", "60000", "--runs", str(tmp_path)]) == 2
    assert "leaves none of the 60000" in capsys.readouterr().err
