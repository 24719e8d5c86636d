from __future__ import annotations

import numpy as np
import pytest

from benchmarks.pictures import strings
from service.core.digits import Pixels, Prediction
from tests.conftest import Mnist


def as_seven(pixels: Pixels) -> list[Prediction]:
    """A classifier that sees a 7 in everything."""
    return [Prediction(7, np.eye(10, dtype=np.float32)[7], 0.0) for _ in pixels]


def test_the_same_seed_draws_the_same_number(mnist: Mnist) -> None:
    for half in ("tune", "test"):
        first, second = (
            strings.draw(mnist.images[:4], mnist.labels[:4], np.random.default_rng(3), half)
            for _ in range(2)
        )
        assert first.text == "7210"
        assert first.picture.tobytes() == second.picture.tobytes()


def test_the_halves_have_different_paper(mnist: Mnist) -> None:
    tune, test = (
        strings.draw(mnist.images[:4], mnist.labels[:4], np.random.default_rng(3), half).picture
        for half in ("tune", "test")
    )
    assert tune.size == test.size
    assert tune.tobytes() != test.tobytes()


@pytest.mark.parametrize("touching", [False, True])
def test_a_classifier_of_one_digit_reads_numbers_of_this_digit(
    mnist: Mnist, touching: bool
) -> None:
    sevens = mnist.images[mnist.labels == 7][:40]
    (result,) = strings.measure(
        [as_seven], sevens, np.full(40, 7), half="tune", touching=touching, count=6
    )
    assert 0 < result.single <= 1
    assert 0 < result.product <= result.single
    assert round(6 * result.exact) == 6 - len(result.misread)
    assert result.ms_per_megapixel > 0
