"""Made-up pictures that are not one digit, and printed digits, to train beside real digits.

A network that never saw anything but digits takes letters and noise for digits with confidence.
With classes of their own for what is not a digit it does not (outlier exposure, Hendrycks et al.
2019). Everything here is made from the training digits, from random numbers, and from the DejaVu
fonts that come with matplotlib (free licence, beside them as LICENSE_DEJAVU).

Letters and signs that can be taken for a digit, such as O, S, l and |, are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

Ink = npt.NDArray[np.uint8]  # [H,W], 0 is paper

# Classes after those of the data set, in this order.
NOT_A_DIGIT, SEVERAL_DIGITS = 10, 11
CLASSES = ("not_a_digit", "several_digits")

_SIDE, _BOX, _GLYPH = 28, 20, 48  # pixels
_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSansMono-BoldOblique"),
)
_LATIN = "ACEFHKLMNPRTUVWXacefhjkmnprtuvwx"
_OTHER_LETTERS = "ΓΔΛΞΠΣΦΨΩαγηκλμνπτυφχψωДЖИЛПЦШЩЫЮЯджилмнпцшщыюяÄÅÇËÑÜßäåæçëñøü"
_SIGNS = '!?#$%&*+-<=>@^~:;{}[]_"€£¥§©®±×÷√∞∑∫≠≈←→↑↓↔♥♦♣♠★☺✓✗✈♪♫■▲●◆►☎☀'  # noqa: RUF001


class _Source(NamedTuple):
    """What pictures are made from."""

    random: np.random.Generator
    digits: Ink  # [N,28,28]
    labels: npt.NDArray[np.int64]  # [N]


def make(images: Tensor, labels: Tensor, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return `count` pictures uint8 [N,28,28] and their classes int64 [N].

    The classes are NOT_A_DIGIT, SEVERAL_DIGITS, and those of printed digits. Only `images` uint8
    [M,28,28] with `labels` int64 [M], from 0 to 9, are cut up and joined. The same arguments give
    the same pictures.
    """
    source = _Source(np.random.default_rng(seed), images.numpy(), labels.numpy())
    kinds, shares = list(_KINDS), np.array(list(_KINDS.values()))
    bounds = (np.cumsum(shares) / shares.sum() * count).round().astype(int)
    pictures = np.zeros((count, _SIDE, _SIDE), np.uint8)
    classes = np.zeros(count, np.int64)
    start = 0
    for kind, end in zip(kinds, bounds, strict=True):
        for index in range(start, end):
            pictures[index], classes[index] = kind(source)
        start = end
    return torch.from_numpy(pictures), torch.from_numpy(classes)


def fit(ink: Ink) -> Ink:
    """Fit ink of any size into MNIST's box of 20x20, and its centre of mass into the middle."""
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if not len(rows):
        return np.zeros((_SIDE, _SIDE), np.uint8)
    digit = Image.fromarray(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    scale = _BOX / max(digit.size)
    width, height = (max(1, round(side * scale)) for side in digit.size)
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    fitted = np.asarray(digit.resize((width, height), method))
    mass = max(1, int(fitted.sum(dtype=np.int64)))
    middle_y = float(fitted.sum(1, dtype=np.int64) @ np.arange(height)) / mass
    middle_x = float(fitted.sum(0, dtype=np.int64) @ np.arange(width)) / mass
    top = min(max(round(_SIDE / 2 - middle_y), 0), _SIDE - height)
    left = min(max(round(_SIDE / 2 - middle_x), 0), _SIDE - width)
    field = np.zeros((_SIDE, _SIDE), np.uint8)
    field[top : top + height, left : left + width] = fitted
    return field


def _letter(source: _Source) -> tuple[Ink, int]:
    characters = _LATIN if source.random.random() < 0.75 else _OTHER_LETTERS
    return fit(_printed(source, characters)), NOT_A_DIGIT


def _sign(source: _Source) -> tuple[Ink, int]:
    return fit(_printed(source, _SIGNS)), NOT_A_DIGIT


def _printed_digit(source: _Source) -> tuple[Ink, int]:
    digit = int(source.random.integers(10))
    return fit(_printed(source, str(digit))), digit


def _turned(source: _Source) -> tuple[Ink, int]:
    """A mirrored digit, or one on its side, of the classes that are then no digits any more."""
    if source.random.random() < 0.5:
        return _digit(source, (3, 4, 7, 9))[:, ::-1], NOT_A_DIGIT
    return np.rot90(_digit(source, (2, 3, 4, 5, 6, 9)), source.random.choice((1, 3))), NOT_A_DIGIT


def _crossed(source: _Source) -> tuple[Ink, int]:
    """Two digits over each other."""
    first, second = (
        _digit(source),
        np.roll(_digit(source), source.random.integers(-5, 6, 2), (0, 1)),
    )
    return fit(np.maximum(first, np.rot90(second, source.random.choice((0, 1))))), NOT_A_DIGIT


def _fragment(source: _Source) -> tuple[Ink, int]:
    """A part of a digit, enlarged; parts that are tall and narrow look like a one."""
    while True:
        side, (top, left) = source.random.integers(9, 14), source.random.integers(3, 14, 2)
        part = _digit(source)[top : top + side, left : left + side]
        rows, columns = part.any(1).sum(), part.any(0).sum()
        if min(rows, columns) > 5 and columns > 0.7 * rows and (part > 128).mean() > 0.15:
            return fit(part), NOT_A_DIGIT


def _several(source: _Source) -> tuple[Ink, int]:
    """Two to four digits in a row, apart or touching."""
    random = source.random
    number = random.choice((2, 3, 4), p=(0.7, 0.2, 0.1))
    row = np.zeros((40, 120), np.uint8)
    end = 2
    touching = random.random() < 0.5
    for _ in range(number):
        digit = _digit(source)
        columns = np.flatnonzero(digit.any(0))
        digit = digit[:, columns[0] : columns[-1] + 1]
        gap = random.integers(-4, 1) if touching else random.integers(1, 9)
        start, top = max(0, end + gap), 6 + random.integers(-4, 5)
        end = start + digit.shape[1]
        row[top : top + _SIDE, start:end] = np.maximum(row[top : top + _SIDE, start:end], digit)
    return fit(row), SEVERAL_DIGITS


def _noise(source: _Source) -> tuple[Ink, int]:
    """Independent or smooth noise, stripes, squares, gradients, over the whole field or part."""
    random, kind = source.random, source.random.integers(6)
    y, x = np.mgrid[:_SIDE, :_SIDE]
    noise: npt.NDArray[Any]
    if kind == 0:
        noise = random.uniform(0, random.uniform(60, 256), (_SIDE, _SIDE))
    elif kind == 1:
        noise = random.normal(random.uniform(0, 200), random.uniform(10, 100), (_SIDE, _SIDE))
    elif kind == 2:
        noise = 255.0 * (random.random((_SIDE, _SIDE)) < random.uniform(0.02, 0.6))
    elif kind == 3:
        cells = int(random.integers(3, 15))
        coarse = Image.fromarray(random.integers(0, 256, (cells, cells), np.uint8))
        method = random.choice((Image.Resampling.NEAREST, Image.Resampling.BICUBIC))
        noise = np.asarray(coarse.resize((_SIDE, _SIDE), Image.Resampling(method)), float)
        noise = np.clip((noise - 128) * random.uniform(1, 4) + random.uniform(0, 200), 0, 255)
    elif kind == 4:
        angle, period = random.uniform(0, np.pi), random.uniform(2.5, 14)
        phase = 2 * np.pi * ((x * np.cos(angle) + y * np.sin(angle)) / period + random.random())
        noise = 127 + 127 * np.sin(phase)
        if random.random() < 0.4:
            noise = np.maximum(noise, noise.T)
        if random.random() < 0.5:
            noise = 255.0 * (noise > random.uniform(80, 220))
    else:
        angle = random.uniform(0, 2 * np.pi)
        noise = random.uniform(0, 200) + (x * np.cos(angle) + y * np.sin(angle)) * random.uniform(
            2, 9
        )
        noise = noise + random.normal(0, random.uniform(0, 20), noise.shape)
    ink = np.clip(noise, 0, 255).astype(np.uint8)
    return (ink if random.random() < 0.7 else fit(ink)), NOT_A_DIGIT


def _shapes(source: _Source) -> tuple[Ink, int]:
    """Filled polygons and ellipses with a texture, as clothes and other objects look."""
    random = source.random
    canvas = Image.new("L", (56, 56))
    draw = ImageDraw.Draw(canvas)
    for _ in range(random.integers(1, 5)):
        fill = int(random.integers(60, 256))
        points = random.integers(2, 54, (int(random.integers(2, 7)), 2))
        if len(points) == 2:
            (left, top), (right, bottom) = points.min(0), points.max(0) + 6
            shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
            shape((left, top, right + 6, bottom + 6), fill=fill)
        else:
            draw.polygon([(int(px), int(py)) for px, py in points], fill=fill)
    ink = np.asarray(canvas.resize((_SIDE, _SIDE), Image.Resampling.BOX), float)
    if random.random() < 0.4:  # the same on both sides
        ink = np.maximum(ink, ink[:, ::-1])
    if random.random() < 0.6:
        period, phase = random.uniform(2, 12), random.uniform(0, 6)
        along = np.arange(_SIDE) / period * 2 * np.pi + phase
        wave = 1 + random.uniform(0.1, 0.6) * np.sin(along)
        ink = ink * (wave if random.random() < 0.5 else wave[:, None])
    ink = ink * random.uniform(1 - random.uniform(0, 0.6), 1, ink.shape)
    pixels = np.clip(ink, 0, 255).astype(np.uint8)
    if (pixels > 40).mean() < 0.12:
        return _shapes(source)
    return (pixels if random.random() < 0.6 else fit(pixels)), NOT_A_DIGIT


def _scribble(source: _Source) -> tuple[Ink, int]:
    """A long line that changes its direction, or several strokes across each other."""
    random = source.random
    canvas = Image.new("L", (64, 64))
    draw = ImageDraw.Draw(canvas)
    width = int(random.integers(2, 8))
    if random.random() < 0.5:
        for _ in range(random.integers(3, 7)):
            line = random.integers(4, 60, 4).tolist()
            draw.line(line, fill=255, width=width)
    else:
        corners = random.uniform(4, 60, (int(random.integers(6, 14)), 2))
        times = np.linspace(0, len(corners) - 1, 60)
        curve = np.stack([np.interp(times, np.arange(len(corners)), c) for c in corners.T], 1)
        if random.random() < 0.6:
            kernel = np.ones(7) / 7
            curve = np.stack([np.convolve(c, kernel, "valid") for c in curve.T], 1)
        draw.line([(float(px), float(py)) for px, py in curve], fill=255, width=width)
    return fit(np.asarray(canvas)), NOT_A_DIGIT


def _blank(source: _Source) -> tuple[Ink, int]:
    """A single grey, with next to no noise, or with one to three specks."""
    random = source.random
    grey = float(random.choice((0, 255, int(random.integers(256)))))
    ink = grey + random.normal(0, random.uniform(0, 12), (_SIDE, _SIDE))
    for _ in range(random.integers(4)):
        top, left = random.integers(0, 26, 2)
        size = random.integers(1, 3)
        ink[top : top + size, left : left + size] = random.uniform(0, 255)
    return np.clip(ink, 0, 255).astype(np.uint8), NOT_A_DIGIT


# By their shares of all pictures.
_KINDS: dict[Callable[[_Source], tuple[Ink, int]], float] = {
    _letter: 0.36,
    _sign: 0.10,
    _printed_digit: 0.08,
    _turned: 0.05,
    _crossed: 0.05,
    _fragment: 0.04,
    _several: 0.14,
    _noise: 0.06,
    _shapes: 0.06,
    _scribble: 0.04,
    _blank: 0.02,
}


def _digit(source: _Source, chosen: tuple[int, ...] | None = None) -> Ink:
    while True:
        index = source.random.integers(len(source.digits))
        if chosen is None or source.labels[index] in chosen:
            digit: Ink = source.digits[index]
            return digit


def _printed(source: _Source, characters: str) -> Ink:
    """One of the characters in one of the fonts, thinner or thicker, narrower or wider."""
    random = source.random
    character = characters[random.integers(len(characters))]
    fonts = _FONTS if character.isascii() else _FONTS[:2]  # others lack some characters
    font = _font(fonts[random.integers(len(fonts))])
    page = Image.new("L", (2 * _GLYPH, 2 * _GLYPH))
    thicker = int(random.integers(0, 4)) if random.random() < 0.5 else 0
    place = (_GLYPH // 2, _GLYPH // 4)
    ImageDraw.Draw(page).text(place, character, fill=255, font=font, stroke_width=thicker)
    if not thicker and random.random() < 0.4:
        thinner = page.filter(ImageFilter.MinFilter(3))
        page = thinner if thinner.getbbox() else page
    wide = random.uniform(0.75, 1.3)
    size = (round(page.width * wide), page.height)
    return np.asarray(page.resize(size, Image.Resampling.BOX))


@functools.cache
def _font(name: str) -> ImageFont.FreeTypeFont:
    import matplotlib as mpl  # takes a quarter of a second

    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"{name}.ttf"), _GLYPH)
