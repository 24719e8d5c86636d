"""The device of a run."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.training.runs import run


def test_missing_device_is_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        return
    done = run(tmp_path, "--device", "cuda")
    assert done.returncode == 2
    assert "CUDA" in done.stderr
