"""Numbers of several digits, written as people write them, and how many are read exactly right.

Each number is a picture of 2 to 6 MNIST digits on one line: digits of different sizes, a common
slant, a baseline that wavers, gaps of any width, paper with texture and shade. A variant has pairs
of digits that touch. Everything is drawn from a seeded generator. The two halves have different
paper, and callers give them different digits: `tune` MNIST's training images, `test` its test
images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.core.digits import Pixels, Prediction
from service.core.pictures.digit import find_digit
from service.core.pictures.reading import candidates_on, choose, further

Half = Literal["tune", "test"]
# The classifier under test: uint8 [N,28,28] to one prediction per image.
Classify = Callable[[Pixels], list[Prediction]]

_SHORTEST, _LONGEST = 2, 6
_MOST = 100  # digits of one picture
_REPEATS = 3
_TOUCHING_SHARE = 1 / 3
# A pixel with at least this much ink is part of a stroke.
_STROKE = 96


class Number(NamedTuple):
    """A drawn number: the picture (mode L) and its digits."""

    picture: Image.Image
    text: str


class Strings(NamedTuple):
    """The result for one variant.

    `exact` is the share of numbers whose text is exactly right. `single` is the accuracy on the
    same digits, each drawn alone in the same way and classified as /predict does, so that errors of
    segmentation do not lower what reading is compared with. `product` is the mean over the numbers
    of `single` to the power of their length. `ms_per_megapixel` is CPU time per megapixel of
    picture, from the decoded picture to the text, with the runs of the model.
    """

    exact: float
    single: float
    product: float
    ms_per_megapixel: float
    misread: list[tuple[str, str]]


def measure(
    classifiers: Sequence[Classify],
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.integer],
    *,
    half: Half,
    touching: bool = False,
    count: int = 1000,
    seed: int = 18,
) -> list[Strings]:
    """Read `count` numbers made from `images`, uint8 [N,28,28], and each of their digits alone.

    All classifiers read the same numbers.
    """
    random = np.random.default_rng([seed, half == "test", touching])
    tallies = [_Tally() for _ in classifiers]
    lengths = []
    megapixels = 0.0
    for _ in range(count):
        chosen = random.integers(0, len(images), random.integers(_SHORTEST, _LONGEST + 1))
        number = draw(images[chosen], labels[chosen], random, half, touching=touching)
        alone = [draw(images[[index]], labels[[index]], random, half) for index in chosen]
        pixels = np.concatenate([find_digit(one.picture).pixels for one in alone])
        for classify, tally in zip(classifiers, tallies, strict=True):
            text, seconds = _timed(number.picture, classify)
            tally.seconds += seconds
            if text != number.text:
                tally.misread.append((number.text, text))
            tally.right += sum(
                str(prediction.digit) == one.text
                for prediction, one in zip(classify(pixels), alone, strict=True)
            )
        lengths.append(len(chosen))
        megapixels += number.picture.width * number.picture.height / 1e6
    results = []
    for tally in tallies:
        single = tally.right / sum(lengths)
        product = float(np.mean([single**length for length in lengths]))
        exact = 1 - len(tally.misread) / count
        cost = 1000 * tally.seconds / megapixels
        results.append(Strings(exact, single, product, cost, tally.misread))
    return results


@dataclass(slots=True)
class _Tally:
    right: int = 0
    seconds: float = 0.0
    misread: list[tuple[str, str]] = field(default_factory=list)


def _timed(picture: Image.Image, classify: Classify) -> tuple[str, float]:
    """The text, and the least CPU time of a few readings in seconds."""
    least, text = float("inf"), ""
    for _ in range(_REPEATS):
        began = time.process_time()
        text = _read(picture, classify)
        least = min(least, time.process_time() - began)
    return text, least


def draw(
    images: npt.NDArray[np.uint8],
    labels: Sequence[int] | npt.NDArray[np.integer],
    random: np.random.Generator,
    half: Half,
    *,
    touching: bool = False,
) -> Number:
    """Draw the digits `images`, uint8 [N,28,28], beside each other on a sheet of paper.

    With `touching`, at least one pair of neighbours touches, and others with a chance of one in
    three.
    """
    height = int(random.integers(60, 181))  # of a digit's 20x20 box, in pixels
    slant = random.uniform(-0.3, 0.3)
    drawn = [_scaled(image, height * random.uniform(0.88, 1.12), slant) for image in images]
    pairs = len(drawn) - 1
    touches = np.zeros(pairs, bool)
    if touching and pairs:
        touches = random.random(pairs) < _TOUCHING_SHARE
        touches[random.integers(pairs)] = True
    spacing = random.uniform(0.12, 0.6)
    sheet = np.zeros((3 * height, (len(drawn) + 2) * 2 * height), np.float32)
    left = height
    for place, digit in enumerate(drawn):
        rows, columns = digit.shape
        top = int(2 * height - rows + height * random.uniform(-0.08, 0.08))
        if place:
            gap = 0.0 if touches[place - 1] else height * spacing * random.uniform(0.5, 1.5)
            left = _next_to(sheet, digit, top, gap, overlap=max(1, height // 40))
        region = sheet[top : top + rows, left : left + columns]
        np.maximum(region, digit, out=region)
    inked = np.flatnonzero(sheet.any(axis=0))
    margins = random.integers(height // 3, height, 4)
    content = sheet[sheet.any(axis=1)][:, inked[0] : inked[-1] + 1]
    field = np.pad(content, (margins[:2].tolist(), margins[2:].tolist()))
    paper = _paper(field.shape, random, half)
    pen = random.uniform(20, 90)
    grey = paper + (pen - paper) * field / 255
    grey += random.normal(0, random.uniform(0, 6), grey.shape)
    picture = Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))
    return Number(picture, "".join(str(int(label)) for label in labels))


def _scaled(image: npt.NDArray[np.uint8], height: float, slant: float) -> npt.NDArray[np.float32]:
    """A digit cropped to its ink, whose 20x20 box becomes `height` pixels high, and slanted."""
    scale = height / 20
    source = Image.fromarray(np.pad(image, ((0, 0), (12, 12))))
    size = round(source.width * scale), round(source.height * scale)
    large = source.resize(size, Image.Resampling.BICUBIC)
    shear = (1, slant, -slant * large.height / 2, 0, 1, 0)
    slanted = large.transform(large.size, Image.Transform.AFFINE, shear, Image.Resampling.BILINEAR)
    box = slanted.point([0] * 32 + [255] * 224).getbbox()
    return np.asarray(slanted.crop(box), np.float32)


def _next_to(
    sheet: npt.NDArray[np.float32],
    digit: npt.NDArray[np.float32],
    top: int,
    gap: float,
    overlap: int,
) -> int:
    """The left edge at which the strokes of `digit` are `gap` pixels from those on the sheet.

    With a gap of 0 they overlap by `overlap` pixels.
    """
    rows = digit.shape[0]
    before, after = sheet[top : top + rows] >= _STROKE, digit >= _STROKE
    right = np.where(before.any(1), before.shape[1] - before[:, ::-1].argmax(1), -(10**6))
    left = np.where(after.any(1), after.argmax(1), 10**6)
    # A gap holds diagonally as well: each row is compared with those up to the gap away.
    reach = int(gap)
    padded = np.pad(right, reach, constant_values=-(10**6))
    right = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1).max(1)
    nearest = int((right - left).max())
    if nearest < 0:  # no row in common: beside the last stroke
        nearest = int(np.flatnonzero(sheet.any(axis=0))[-1]) + 1
    return nearest + (int(gap) if gap else -overlap)


def _paper(
    shape: tuple[int, ...], random: np.random.Generator, half: Half
) -> npt.NDArray[np.float32]:
    """Grey levels of an empty sheet: `tune` has soft stains, `test` fibres and a shaded side."""
    height, width = shape
    level = random.uniform(190, 250)
    strength = random.uniform(0, 14)
    if half == "tune":
        coarse = (max(2, height // 24), max(2, width // 24))
    else:
        coarse = (max(2, height // 3), max(2, width // 40))
    noise = random.normal(0, 1, coarse).astype(np.float32)
    texture = np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    paper = level + strength * texture
    if half == "test":
        paper = paper * np.linspace(1, random.uniform(0.8, 1), width, dtype=np.float32)
    return np.clip(paper, 120, 255).astype(np.float32)


def _read(picture: Image.Image, classify: Classify) -> str:
    """The text, by the steps of operations.Digits.read."""
    found = candidates_on(picture, _MOST)
    if not len(found.pixels):
        return ""
    seen: dict[int, Prediction] = {}
    while len(found.pixels):
        seen.update(zip(found.numbers, classify(found.pixels), strict=True))
        found = further(found, seen, _MOST)
    return choose(found, seen).text
