"""The half that the picture pipeline may be tuned on.

Strokes are the digit's own shape, scaled up by bicubic interpolation and cut at half its height;
other widths are level sets of its blurred skeleton. Paper is Gaussian noise in octaves, noise is
Gaussian, shadows are half planes and strips, light falls off along a line, dust is round, blur is
Gaussian, colours are random hues.
"""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageFilter

from benchmarks.pictures.half import Colour, Digit, Plane, Shape, as_plane, contrast, coordinates
from benchmarks.pictures.thinning import thin

name = "tune"


def stream(random: np.random.Generator) -> np.random.Generator:
    """Philox, seeded from `random`."""
    return np.random.Generator(np.random.Philox(key=int(random.integers(2**62))))


def strokes(digit: Digit, side: int, random: np.random.Generator, width: float | None) -> Plane:
    """The digit's shape, cut at half its height, or a tube of `width` around its skeleton."""
    if width is None:
        large = Image.fromarray(digit).resize((side, side), _CUBIC)
        shape = np.asarray(large, np.float32) / 255
        return as_plane(np.clip((shape - 0.5) * side / 56 + 0.5, 0, 1))
    scale = 4
    work = Image.fromarray(digit).resize((28 * scale, 28 * scale), _CUBIC)
    skeleton = thin(np.asarray(work) > 110).astype(np.float32)
    # Across a line, a Gaussian of `sigma` falls to this level at the distance of 2 `sigma`.
    sigma = width / 4 * scale
    level = np.exp(-2) / (sigma * np.sqrt(2 * np.pi))
    rows, columns = np.fft.fftfreq(28 * scale)[:, None], np.fft.rfftfreq(28 * scale)
    spread = np.exp(-2 * (np.pi * sigma) ** 2 * (rows**2 + columns**2))
    tube = np.fft.irfft2(np.fft.rfft2(skeleton) * spread, skeleton.shape) / level
    large = Image.fromarray(tube.astype(np.float32)).resize((side, side), _CUBIC)
    # The slope there is 2 / sigma: an edge of about one pixel of the answer.
    slope = sigma / 2 * side / (28 * scale)
    return as_plane(np.clip((np.asarray(large, np.float32) - 1) * slope + 0.5, 0, 1))


def paper(shape: Shape, random: np.random.Generator) -> Plane:
    """Gaussian noise in three octaves."""
    texture = np.ones(shape, np.float32)
    for cells, strength in ((6, 0.015), (24, 0.01), (96, 0.01)):
        grid = random.normal(0, strength, (cells, cells)).astype(np.float32)
        texture += np.asarray(Image.fromarray(grid).resize(shape[::-1], _CUBIC))
    return as_plane(texture)


def noise(shape: Shape, sigma: float, random: np.random.Generator) -> Plane:
    """Gaussian noise."""
    return as_plane(random.standard_normal(shape, np.float32) * np.float32(sigma))


def shadow(shape: Shape, depth: float, random: np.random.Generator) -> Plane:
    """A half plane or a strip, with a soft edge, that passes near the centre."""
    y, x = coordinates(shape)
    angle, size = random.uniform(0, 2 * np.pi), min(shape)
    away = x * np.cos(angle) + y * np.sin(angle) - random.uniform(-0.25, 0.25) * size
    soft = random.uniform(0.005, 0.12) * size
    if random.random() < 0.5:  # as of an arm or a pencil
        away = random.uniform(0.07, 0.25) * size - np.abs(away)
        soft = min(soft, 0.04 * size)
    return as_plane(1 - depth / (1 + np.exp(np.clip(-away / soft, -30, 30))))


def gradient(shape: Shape, depth: float, random: np.random.Generator) -> Plane:
    """Light that falls off along a line."""
    y, x = coordinates(shape)
    angle = random.uniform(0, 2 * np.pi)
    ramp = x * np.cos(angle) + y * np.sin(angle)
    return as_plane(1 - depth * (ramp - ramp.min()) / np.ptp(ramp))


def line(distance: Plane, width: float, random: np.random.Generator) -> Plane:
    """A solid line with an edge of one pixel."""
    return as_plane(np.clip(width / 2 + 0.5 - np.abs(distance), 0, 1))


def specks(shape: Shape, random: np.random.Generator) -> Plane:
    """3 to 15 round spots."""
    dust = np.zeros(shape, np.float32)
    y, x = coordinates(shape)
    for _ in range(random.integers(3, 16)):
        at_y, at_x = random.uniform(-0.5, 0.5, 2) * shape
        radius = random.uniform(0.003, 0.014) * min(shape)
        np.maximum(dust, np.clip(radius + 0.5 - np.hypot(y - at_y, x - at_x), 0, 1), out=dust)
    return dust


def blur(page: Plane, sigma: float, random: np.random.Generator) -> Plane:
    """A Gaussian."""
    image = Image.fromarray(np.clip(page, 0, 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(sigma)), np.float32)


def colours(random: np.random.Generator) -> tuple[Colour, Colour]:
    """Two random colours."""
    while True:
        one, other = (
            colorsys.hsv_to_rgb(random.uniform(), random.uniform(0.2, 1), random.uniform(0.1, 1))
            for _ in range(2)
        )
        pair = tuple(tuple(255 * value for value in colour) for colour in (one, other))
        if contrast(*pair) >= 2:
            return pair  # type: ignore[return-value]


def greys(random: np.random.Generator) -> tuple[float, float]:
    """Paper of 225 to 255 and a pen of 0 to 70."""
    return random.uniform(225, 255), random.uniform(0, 70)


_CUBIC = Image.Resampling.BICUBIC
