"""The plots of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

PICTURES = ("loss", "accuracy", "confusion", "reliability", "coverage", "mistakes", "filters")


@pytest.mark.parametrize("name", PICTURES)
def test_every_plot_is_also_a_file(run: Path, name: str) -> None:
    with Image.open(run / f"{name}.png") as image:
        assert image.format == "PNG"
        assert image.width > 400
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 10  # something is drawn
