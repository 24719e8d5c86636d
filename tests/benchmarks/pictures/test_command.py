"""The options of python -m benchmarks.pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.pictures.__main__ import main


def test_a_folder_without_a_model_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--models", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"pictures: {tmp_path} has no model.onnx.\n"
