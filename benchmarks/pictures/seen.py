"""What the picture pipeline makes of drawn pictures: the pixels for the network, and its reasons.

Drawing is most of the work and needs no model, so it is done once, by a process per core.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.pictures.kinds import KINDS, draw
from benchmarks.pictures.outliers import MAKERS, Outlier, fashion_picture, make
from service.core.digits import REASONS, Pixels
from service.core.pictures.digit import find_digit
from service.core.pictures.files import open_picture

FASHION_PIXELS, FASHION_PICTURES = "fashion_pixels", "fashion_picture"
# The service's own limits, by default.
_MOST_PIXELS = 50_000_000
_AT_A_TIME = 50


class Seen(NamedTuple):
    """uint8 [N,28,28], and indexes [N] into REASONS of what the pipeline itself found, 0: none."""

    pixels: Pixels
    reasons: npt.NDArray[np.uint8]


class _Job(NamedTuple):
    name: str
    seed: int
    start: int
    number: int
    images: Pixels | None  # [number,28,28] for kinds and clothes


class Pool:
    """Draws in processes of its own."""

    def __init__(self, executor: ProcessPoolExecutor, seed: int) -> None:
        self.executor = executor
        self._seed = seed

    def see(self, name: str, count: int, images: Pixels | None = None) -> Seen:
        """Draw `count` of a kind (of these images) or outlier, by the test half, and look at it."""
        jobs = [
            _Job(
                name,
                self._seed,
                start,
                min(_AT_A_TIME, count - start),
                None if images is None else images[start : start + _AT_A_TIME],
            )
            for start in range(0, count, _AT_A_TIME)
        ]
        parts = list(self.executor.map(_do, jobs))
        return Seen(
            np.concatenate([part.pixels for part in parts]),
            np.concatenate([part.reasons for part in parts]),
        )


@contextmanager
def pool(seed: int) -> Iterator[Pool]:
    """A process per core, for as long as the context lasts."""
    # Forking a process that has run torch or ONNX Runtime is not safe.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as executor:
        yield Pool(executor, seed)


def look_at(outlier: Outlier) -> tuple[Pixels, int]:
    """Pixels [28,28] as the network gets them, and the pipeline's reason."""
    if isinstance(outlier, np.ndarray):
        return outlier, 0
    picture: Image.Image
    if isinstance(outlier, bytes):
        picture = open_picture(outlier, _MOST_PIXELS, _MOST_PIXELS)
    else:
        picture = outlier
    found = find_digit(picture)
    return found.pixels[0], REASONS.index(found.reason)


def drawn(name: str, seed: int, index: int, image: Pixels | None) -> Outlier:
    """The picture with this index, by the test half."""
    names = (*KINDS, *MAKERS, FASHION_PICTURES, FASHION_PIXELS)
    random = np.random.default_rng([seed, names.index(name), index])
    if image is None:
        return make(name, random, "test")
    if name == FASHION_PICTURES:
        return fashion_picture(image, random)
    return image if name == FASHION_PIXELS else draw(name, image, random, "test")


def _do(job: _Job) -> Seen:
    looks = [
        look_at(drawn(job.name, job.seed, job.start + offset, image))
        for offset, image in enumerate(
            [None] * job.number if job.images is None else list(job.images)
        )
    ]
    return Seen(
        np.stack([pixels for pixels, _ in looks]),
        np.array([reason for _, reason in looks], np.uint8),
    )
