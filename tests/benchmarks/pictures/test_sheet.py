"""The sheet of the docs."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from benchmarks.paths import ROOT
from benchmarks.pictures.__main__ import main


def test_the_sheet_of_the_docs_is_the_one_that_the_command_draws(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    assert main(["--sheet", str(path)]) == 0
    committed = ROOT / "docs" / "pictures.png"
    with Image.open(path) as drawn, Image.open(committed) as shown:
        assert drawn.size == shown.size
    assert committed.stat().st_size < 300_000
