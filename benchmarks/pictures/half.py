"""What the two halves of the generators draw differently; `kinds` composes it into pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.float32]
Digit = npt.NDArray[np.uint8]
Colour = tuple[float, float, float]
Shape = tuple[int, int]


class Half(Protocol):
    """The drawing functions of one half. Planes are float32 [H,W]; coverage is 0 to 1."""

    name: str

    def stream(self, random: np.random.Generator) -> np.random.Generator:
        """A stream of this half's own kind, seeded from `random`."""

    def strokes(
        self, digit: Digit, side: int, random: np.random.Generator, width: float | None
    ) -> Plane:
        """The coverage by the pen, [side,side]; `width` in pixels of MNIST, None: as written."""

    def paper(self, shape: Shape, random: np.random.Generator) -> Plane:
        """The texture of paper as factors around 1."""

    def noise(self, shape: Shape, sigma: float, random: np.random.Generator) -> Plane:
        """The noise of a sensor, in grey levels, with this standard deviation."""

    def shadow(self, shape: Shape, depth: float, random: np.random.Generator) -> Plane:
        """Light as factors: 1 outside the shadow, 1 - depth in it."""

    def gradient(self, shape: Shape, depth: float, random: np.random.Generator) -> Plane:
        """Light that falls off over the whole page, to 1 - depth."""

    def line(self, distance: Plane, width: float, random: np.random.Generator) -> Plane:
        """The coverage by a line at these distances in pixels from its centre."""

    def specks(self, shape: Shape, random: np.random.Generator) -> Plane:
        """The coverage by dust."""

    def blur(self, page: Plane, sigma: float, random: np.random.Generator) -> Plane:
        """A page out of focus, about as much as by a Gaussian of `sigma` pixels."""

    def colours(self, random: np.random.Generator) -> tuple[Colour, Colour]:
        """A paper and a pen that differ by at least 2:1 in luminance, either of them lighter."""

    def greys(self, random: np.random.Generator) -> tuple[float, float]:
        """Grey levels of white paper and of a dark pen."""


def as_plane(values: npt.NDArray[Any]) -> Plane:
    """The values as float32, without a copy where they are."""
    return values.astype(np.float32, copy=False)


def coordinates(shape: Shape) -> tuple[Plane, Plane]:
    """The y and x of every pixel from the centre, as [H,1] and [1,W]."""
    height, width = shape
    y = np.arange(height, dtype=np.float32)[:, None] - (height - 1) / 2
    x = np.arange(width, dtype=np.float32)[None, :] - (width - 1) / 2
    return y, x


def luminance(colour: Sequence[float]) -> float:
    """Relative luminance of an sRGB colour of 0 to 255 (WCAG 2.2), 0 to 1."""
    linear = ((np.asarray(colour) / 255 + 0.055) / 1.055) ** 2.4
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """The contrast ratio of two colours (WCAG 2.2), 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
