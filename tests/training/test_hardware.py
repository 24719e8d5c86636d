"""The device of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training.commands.train import main


def test_missing_device_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        return
    assert main(["--device", "cuda", "--runs", str(tmp_path)]) == 2
    assert "CUDA" in capsys.readouterr().err
