"""The folder of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.commands.train import main


def test_unwritable_runs_folder_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert main(["--runs", str(tmp_path / "file" / "runs"), "--train-limit", "100"]) == 1
    message = capsys.readouterr().err
    assert "No run folder can be made" in message
    assert "--runs" in message
