"""Pictures for tests: the same sign on many kinds of paper."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from service.core.pictures.page import Floats


def seven(width: int = 200, height: int = 240) -> Floats:
    """The coverage of a page by a seven, which no turn or mirror maps onto itself: [H,W], 0..1."""
    page = Image.new("L", (width, height))
    x, y, pen = width / 4, height / 4, max(2, round(min(width, height) / 14))
    corners = [(x, y), (3 * x, y), (1.6 * x, 3 * y)]
    ImageDraw.Draw(page).line(corners, fill=255, width=pen, joint="curve")
    return np.asarray(page, np.float32) / 255


def picture(values: Floats) -> Image.Image:
    """Grey levels [H,W] or [H,W,C] as a picture."""
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def closeness(a: np.ndarray, b: np.ndarray) -> float:
    """The correlation of two arrays of the same shape."""
    return float(np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1])
