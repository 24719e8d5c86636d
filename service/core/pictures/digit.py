"""Pictures of digits to the 28x28 pixels that MNIST models were trained on.

MNIST digits are bright ink on a dark background, scaled into a 20x20 box with their aspect ratio
kept, and placed so that the centre of mass is the centre of the 28x28 field (LeCun et al., "The
MNIST database of handwritten digits"). A 28x28 picture that is bright on dark is used unchanged.
Every other picture becomes ink on paper (`page`), loses frames, ruling and specks (`components`),
and is fitted here as the MNIST digits were.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.core.digits import SIDE, Pixels
from service.core.pictures import page as pages
from service.core.pictures.components import components_of, digit_of, without_lines
from service.core.pictures.files import decode
from service.core.pictures.page import IS_INK, Ink, ink_of, upright

_BOX = 20
_IS_SEEN = 80
# What comes in from outside over this part of a page's side, and takes no more light than this, is
# a shadow rather than ink.
_ENTERS = 1 / 32
_SHADOW_DEPTH = 0.65
# What comes closer to an edge than this part of the side nearly reaches it.
_NEARLY = 1 / 12
# The tip of a shadow that is wider elsewhere seems to take at most this much light.
_TIP_DEPTH = 0.45
# A square of this part of the side that is as dark as ink beside it is no paper. As dark is what is
# brighter (or darker) by no more than this part of what paper would be.
_BLOCK = 24
_AS_DARK = 0.3
_DARKEST = 5  # of the ink, in percent
# A digit of fewer pixels on a page is looked at again in a larger copy of the picture.
_SMALL = 44


class Found(NamedTuple):
    """One digit as uint8 [1,28,28], and why it may be none: a word of REASONS and a hint.

    `steps` has a name and a picture for each step, if asked for.
    """

    pixels: Pixels
    reason: str
    hint: str
    steps: tuple[tuple[str, Image.Image], ...]


def find_digit(image: Image.Image, *, explain: bool = False) -> Found:
    """Decode an opened picture and find the digit on it.

    Raises InvalidArgument if the data is damaged.
    """
    decode(image)
    if image.size == (SIDE, SIDE):
        is_plain = image.mode == "L" and not image.info
        raw = (image if is_plain else upright(image, SIDE).convert("L")).tobytes()
        border = raw[:SIDE] + raw[-SIDE:] + raw[::SIDE] + raw[SIDE - 1 :: SIDE]
        # The median of the border is the background; mostly it is all 0.
        if border.count(0) > len(border) // 2 or median(border) < 128:
            # Twice as fast as to make an array of the image.
            grey = np.frombuffer(raw, np.uint8).reshape(SIDE, SIDE)
            steps: tuple[tuple[str, Image.Image], ...] = ()
            if explain:
                steps = (("pixels", Image.fromarray(grey)),)
            return Found(grey[None], "", "", steps)
    picture = upright(image, pages.SIDE)
    done = [("picture", picture)]
    page = ink_of(picture)
    digit = _digit_on(page)
    if explain:
        done.append(("ink", Image.fromarray(page.ink)))
    several = digit is not None and digit.several
    if digit is not None and max(digit.ink.shape) < _SMALL and max(image.size) > pages.SIDE:
        picture = upright(image, pages.SIDE, _around(digit.box, page.ink.shape))
        page = ink_of(picture)
        digit = _digit_on(page)
        if explain:
            done += [("closer", picture), ("ink, closer", Image.fromarray(page.ink))]
    if digit is None:
        hint = page.hint or (
            "Only specks, lines or shadows were found; is the digit large enough, with paper on "
            "all sides?"
        )
        pixels = np.zeros((1, SIDE, SIDE), np.uint8)
        return Found(pixels, "blank", hint, tuple(done) if explain else ())
    pixels = fit_digit(digit.ink)[None]
    if explain:
        done += [("digit", Image.fromarray(digit.ink)), ("pixels", Image.fromarray(pixels[0]))]
    return Found(
        pixels,
        "several_digits" if several else "",
        "Several digits were found; send one, or send the picture to /read." if several else "",
        tuple(done) if explain else (),
    )


class _Digit(NamedTuple):
    """The ink of a digit alone (uint8 [h,w]), its box on the page (top, left, bottom, right)."""

    ink: Ink
    box: tuple[int, int, int, int]
    several: bool


def _digit_on(page: pages.Page) -> _Digit | None:
    ink = without_lines(page.ink)
    found = components_of(ink >= IS_INK)
    chosen, several = digit_of(found, (ink.shape[0], ink.shape[1]))
    if not chosen:
        return None
    is_chosen = np.zeros(len(found.areas), bool)
    is_chosen[chosen] = True
    mask = np.pad(is_chosen[found.labels], 1)
    # The edges of strokes are soft: one more pixel on every side belongs to them.
    near = mask[:-2] | mask[1:-1] | mask[2:]
    near = near[:, :-2] | near[:, 1:-1] | near[:, 2:]
    if page.depth < _SHADOW_DEPTH and _enters(mask[1:-1, 1:-1]):
        return None
    if page.depth < _TIP_DEPTH and _continues(mask[1:-1, 1:-1], page):
        return None
    boxes = found.boxes[chosen]
    top, left = (max(int(edge) - 1, 0) for edge in boxes[:, :2].min(axis=0))
    bottom, right = (int(edge) + 1 for edge in boxes[:, 2:].max(axis=0))
    area = np.s_[top:bottom, left:right]
    return _Digit(np.where(near[area], ink[area], np.uint8(0)), (top, left, bottom, right), several)


def _enters(mask: npt.NDArray[np.bool_]) -> bool:
    """Whether something comes in from outside of the page.

    A wide part of it is at an edge; or it nearly reaches two of them, as the paper under a shadow
    is hard to estimate in corners.
    """
    least = max(mask.shape) * _ENTERS
    sides = (mask, mask[::-1], mask.T, mask.T[::-1])
    if any(np.count_nonzero(side[0]) >= least for side in sides):
        return True
    near = [np.count_nonzero(side[int(len(side) * _NEARLY)]) >= least for side in sides]
    return near.count(True) >= 2


def _continues(mask: npt.NDArray[np.bool_], page: pages.Page) -> bool:
    """Whether paper beside what seems to be ink is as dark: it is the end of a wide shadow.

    Where a shadow is wider than any stroke, it is taken for paper. Lines are too thin to count.
    """
    if page.picture.mode != "L":  # shadows have no colour
        return False
    grey = np.asarray(page.picture)
    if grey[mask].mean() > grey.mean():  # bright ink is no shadow
        return False
    block = max(3, max(mask.shape) // _BLOCK | 1)
    reach = block + 2
    inked = np.where(mask, grey, np.uint8(255))
    darkest = pages.extreme(np.pad(inked, reach, constant_values=255), 2 * reach + 1, np.minimum)
    is_near = darkest < 255
    # A digit that crosses the edge of a shadow is darker than that somewhere, a shadow is not.
    darkest = np.minimum(darkest, np.percentile(grey[mask], _DARKEST))
    # The paper around ink of this depth is brighter by `step`, the paper in a shadow by nothing.
    step = darkest * (_AS_DARK * page.depth / (1 - page.depth))
    edge = pages.extreme(np.pad(mask, 1), 3, np.maximum)
    is_dark = (np.abs(grey - darkest) <= step) & is_near & ~edge & (page.ink < IS_INK)
    return bool(pages.extreme(is_dark, block, np.minimum).any())


def _around(box: tuple[int, int, int, int], shape: tuple[int, ...]) -> pages.Part:
    """The part of a page around a box, with a margin of 0.4 times its longer side."""
    top, left, bottom, right = box
    margin = 0.4 * max(bottom - top, right - left) + 1
    height, width = shape
    return (
        max(0.0, (left - margin) / width),
        max(0.0, (top - margin) / height),
        min(1.0, (right + margin) / width),
        min(1.0, (bottom + margin) / height),
    )


def fit_digit(ink: Ink) -> Pixels:
    """Ink (0 = paper) of any size to [28,28], by the steps that made the MNIST digits."""
    pixels: Pixels = fit_digits([ink], 1)[0]
    return pixels


def fit_digits(inks: Iterable[Ink], count: int) -> Pixels:
    """Each of `count` inks (0 = paper), of any size, to [N,28,28], as the MNIST digits were made.

    It holds one of them at a time.
    """
    field = Image.new("L", (_BOX, _BOX * count))
    sizes = [(0, 0)] * count
    for index, ink in enumerate(inks):
        box = Image.fromarray((ink >= _IS_SEEN).view(np.uint8)).getbbox()
        if box is None:
            continue
        left, top, right, bottom = box
        scale = _BOX / max(bottom - top, right - left)
        height, width = (max(1, round(side * scale)) for side in (bottom - top, right - left))
        # When shrinking, a box filter averages every source pixel, as MNIST's anti-aliasing did.
        method = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
        seen = Image.fromarray(ink).crop(box)
        field.paste(seen.resize((width, height), method), (0, _BOX * index))
        sizes[index] = height, width
    boxes = np.asarray(field).reshape(-1, _BOX, _BOX)
    pixels = np.zeros((count, SIDE, SIDE), np.uint8)
    down, across = boxes.sum(axis=2, dtype=np.float64), boxes.sum(axis=1, dtype=np.float64)
    at = np.arange(_BOX, dtype=np.float64)
    moments = (down @ at).tolist(), (across @ at).tolist(), down.sum(axis=1).tolist()
    # Measured over the 10,000 test images, the centre of mass is at index (13.99, 14.01) +- 0.29.
    for index, (height, width) in enumerate(sizes):
        y, x, mass = (moment[index] for moment in moments)
        mass = max(mass, 1.0)  # of specks far apart, averaging may leave nothing
        top = min(max(round(SIDE / 2 - y / mass), 0), SIDE - height)
        left = min(max(round(SIDE / 2 - x / mass), 0), SIDE - width)
        pixels[index, top : top + height, left : left + width] = boxes[index, :height, :width]
    return pixels
