"""What the pipeline makes of drawn pictures."""

from __future__ import annotations

import numpy as np

from benchmarks import served_models
from benchmarks.pictures.seen import FASHION_PIXELS, drawn, look_at, pool

IMAGES = served_models.test_images(3)


def test_parallel_drawing_gives_the_pictures_of_their_indexes() -> None:
    with pool(seed=5) as drawing:
        seen = drawing.see("shadow", 3, IMAGES)
        blanks = drawing.see("blank", 60)
    assert seen.pixels.shape == (3, 28, 28)
    for index, image in enumerate(IMAGES):
        pixels, reason = look_at(drawn("shadow", 5, index, image))
        assert (pixels == seen.pixels[index]).all()
        assert reason == seen.reasons[index]
    # The last one is the first of its job.
    pixels, _ = look_at(drawn("blank", 5, 50, None))
    assert (pixels == blanks.pixels[50]).all()
    assert len(blanks.pixels) == len(blanks.reasons) == 60


def test_pixels_are_not_looked_at() -> None:
    clothes = np.full((28, 28), 200, np.uint8)
    pixels, reason = look_at(drawn(FASHION_PIXELS, 5, 0, clothes))
    assert (pixels == clothes).all()
    assert reason == 0
