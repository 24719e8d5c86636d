"""From a decoded picture to ink on paper.

Strategy: everything happens on a picture of at most SIDE pixels per side. It is reduced first, in
bands where it must be converted, so there is never a second copy of a large picture. Then

1. the paper is estimated by a closing (for dark ink; an opening for bright ink) with a square that
   is wider than any stroke: strokes disappear, while the edges of shadows stay where they are;
2. each channel is divided by its paper, which removes shadows and gradients;
3. the channels are joined along the direction in which most of the ink lies, so a pen is seen on
   paper of the same luminance as well;
4. the ink is scaled to 0..255 by its own depth.

Dark and bright ink are both tried. The picture shows which of them is ink: strokes take little of
a page, so the distribution of grey is skewed to their side.

`ink_of` is for a page with one digit. `fine_ink_of` is for a page with many digits, where only a
few pixels in a hundred are ink. It needs more pixels. It takes the results of 1 and 3 from a small
copy, and derives the level of ink from how much the paper varies, not from two classes of similar
size.
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.core.errors import InvalidArgument
from service.core.pictures.files import DAMAGED, IS_DAMAGED, decode, orientation

# Pixels per side of a page, at most.
SIDE = 128
# Pixels that are converted at a time.
_BAND_PIXELS = 256 * 1024
# Ink is told from paper by at least this part of the paper's brightness.
LEAST_CONTRAST = 0.1
# Ink stands out from the paper by this many standard deviations of the paper's own depth. Otsu's
# threshold splits the texture of blank paper at 2.5 to 3.5; of 3,150 pictures of digits, none is
# below 8.
_LEAST_SEPARATION = 5.0
# From this value on, a pixel of ink belongs to a stroke.
IS_INK = 96
# A shadow takes at least this part of what seems to be ink, and is at most so deep, by the strokes.
_SHADOW = 0.1
_LIGHTER = 0.85
# A smaller square, in pixels, does not hold the stroke of a pen.
_THIN = 9
# The depths of a pen without a shadow differ by less than this, by their mean, on a sharp picture.
_EVEN = 0.14
# Grey levels added to both, so that noise in the dark is not taken for ink.
_LEAST_LIGHT = 12
_LOGS = np.log(np.arange(256) + 16)
# Of a fine page: pixels per side of the copy on which the paper is estimated, and the levels of the
# depth of ink. _LEVELS are all light, _ZERO is that of the paper.
_PAPER_SIDE = 128
_LEVELS, _ZERO = 220, 32
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Left, top, right and bottom of a part of a picture as people see it, as parts of its sides.
Part = tuple[float, float, float, float]
WHOLE: Part = (0.0, 0.0, 1.0, 1.0)

Ink = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
_Value = TypeVar("_Value", np.uint8, np.bool_)


class Page(NamedTuple):
    """Ink (uint8 [H,W]: 0 is paper, 255 full ink), and pixels of it per pixel of the picture.

    `hint` says what was found on a page without ink; it is empty otherwise. `picture` is
    what the ink was taken from, and `depth` the part of the light that the ink takes, 0 to 1.
    """

    ink: Ink
    scale: float
    hint: str
    picture: Image.Image
    depth: float


def upright(image: Image.Image, side: int, part: Part = WHOLE) -> Image.Image:
    """Decode a picture; return a part of it as people see it, in L or RGB, reduced in size.

    Its longer side has `side` to 2 `side` pixels, or fewer if the picture has no more. Raises
    InvalidArgument if the data is damaged.
    """
    decode(image)
    turn = orientation(image)
    left, top, right, bottom = _before_turning(part, turn)
    left, right = int(left * image.width), ceil(right * image.width)
    top, bottom = int(top * image.height), ceil(bottom * image.height)
    factor = max(1, max(right - left, bottom - top) // side)
    try:
        if image.mode in ("L", "RGB") and not image.has_transparency_data:
            box = (left, top, right, bottom)
            is_whole = box == (0, 0, *image.size)
            small = image if is_whole and factor == 1 else image.reduce(factor, box)
        else:
            rows = max(1, _BAND_PIXELS // (right - left) // factor) * factor
            bands = [
                _plain(image.crop((left, row, right, min(row + rows, bottom))), factor)
                for row in range(top, bottom, rows)
            ]
            small = bands[0]
            if len(bands) > 1:
                height = sum(band.height for band in bands)
                small = Image.new(bands[0].mode, (bands[0].width, height))
                row = 0
                for band in bands:
                    small.paste(band, (0, row))
                    row += band.height
    except DAMAGED:
        raise InvalidArgument(IS_DAMAGED) from None
    if small.mode in ("RGBA", "LA"):
        small = _on_paper(small)
    elif small.mode == "F":
        small = _in_range(small)
    return small.transpose(_TURNS[turn]) if turn > 1 else small


def ink_of(picture: Image.Image) -> Page:
    """The ink on a picture in L or RGB. A blank page has none, and a hint."""
    scale = min(1.0, SIDE / max(picture.size))
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BOX)
    if picture.mode == "RGB" and not _has_colour(picture):
        picture = picture.convert("L")
    planes, bright = _dark_planes(picture)
    stroke = _stroke(planes.shape[1:])
    depth = _depth(planes, bright, stroke)
    ink = _ink(depth)
    # A shadow that is narrower than the square is taken for ink. A smaller square still holds the
    # strokes of most pens. What it makes paper was a shadow if it is lighter than what it leaves.
    for square in (stroke // 2 | 1, stroke // 3 | 1):
        if ink is None or square < _THIN or _spread(depth[ink >= IS_INK]) < _EVEN:
            break
        again = _ink(_depth(planes, bright, square))
        if again is None:
            continue
        is_ink, is_left = ink >= IS_INK, again >= IS_INK
        gone = is_ink & ~is_left
        if (
            np.count_nonzero(gone) > _SHADOW * np.count_nonzero(is_ink)
            and depth[gone].mean() < _LIGHTER * depth[is_left].mean()
        ):
            ink = again
    if ink is None:
        hint = (
            "No ink was found; is the pen darker or lighter than the paper by at least "
            f"{LEAST_CONTRAST:.0%} of its brightness?"
        )
        return Page(np.zeros(planes.shape[1:], np.uint8), scale, hint, picture, 0.0)
    return Page(ink, scale, "", picture, float(depth[ink >= IS_INK].mean()))


def fine_ink_of(picture: Image.Image) -> Ink:
    """The ink on a picture in L or RGB, of its size: uint8 [H,W], 0 is paper and 255 full ink."""
    factor = -(-max(picture.size) // _PAPER_SIDE)
    if picture.mode != "L":
        picture = _in_grey(picture, factor)
    grey = np.asarray(picture)
    small = np.asarray(picture.reduce(factor))
    if _ink_is_bright(np.ascontiguousarray(grey[::2, ::2])):
        grey, small = 255 - grey, 255 - small
    paper = closed(small[None], max(3, max(small.shape) // 6 | 1))[0]
    # Fixed-point arithmetic in 16 bits: a pixel counts as at most a tenth brighter than its paper.
    height, width = grey.shape
    lit = paper.astype(np.uint16) + 8
    brightest = np.minimum(lit * 11 // 10 - 8, 255).astype(np.uint8)
    brightest, scale = (
        values.repeat(factor, 1)[:, :width] for values in (brightest, _LEVELS * 256 // lit)
    )
    brightest = brightest.repeat(factor, 0)[:height]
    blocks = np.zeros((len(scale), factor, width), np.uint16)
    depth = blocks.reshape(-1, width)[:height]
    depth[:] = np.minimum(grey, brightest)
    depth += 8
    blocks *= scale[:, None]
    depth >>= 8
    np.subtract(_LEVELS + _ZERO, depth, out=depth)
    levels = Image.fromarray(depth.astype(np.uint8))
    usual, pen = _paper_and_pen(levels.histogram())
    if pen <= usual:
        return np.zeros(grey.shape, np.uint8)
    np.clip(depth, usual, pen, out=depth)
    depth -= usual
    depth *= -(-255 * 256 // (pen - usual))
    depth >>= 8
    return depth.astype(np.uint8)


def _in_grey(picture: Image.Image, factor: int) -> Image.Image:
    """A picture in RGB, in L along the axis of its ink; a small copy shows this axis."""
    small = picture.reduce(factor)
    if not _has_colour(small):
        return picture.convert("L")
    planes, bright = _dark_planes(small)
    depth = closed(planes, max(3, max(planes.shape) // 6 | 1)) - planes
    weights = _ink_axis(depth.astype(np.float32)) * np.where(bright.ravel(), -1, 1)
    red, green, blue = (weights / np.abs(weights).sum()).tolist()
    offset = -255 * sum(weight for weight in (red, green, blue) if weight < 0)
    return picture.convert("L", (red, green, blue, offset))


def _paper_and_pen(histogram: list[int]) -> tuple[int, int]:
    """The levels of depth of paper and of full ink; the same without ink.

    `histogram` counts the pixels of each of 256 levels.
    """
    counts = np.array(histogram)
    below = counts.cumsum()
    levels = np.arange(256)
    usual = int(below.searchsorted(below[-1] / 2))
    away = np.abs(levels - usual)
    varies = 1.5 * int(np.bincount(away, counts).cumsum().searchsorted(below[-1] / 2))
    least = max(_ZERO + LEAST_CONTRAST * _LEVELS, usual + 5 * varies)
    inked = below - below[min(int(least), 255)]
    if inked[-1] <= 0:
        return usual, usual
    return usual, int(inked.searchsorted(0.75 * inked[-1]))


def _dark_planes(picture: Image.Image) -> tuple[Ink, npt.NDArray[np.bool_]]:
    """A picture in L or RGB as planes [C,H,W] with dark ink; bool [C,1,1]: it was bright."""
    values = np.asarray(picture)
    if values.ndim == 2:
        values = values[:, :, None]
    planes = np.ascontiguousarray(values.transpose(2, 0, 1))
    bright = np.reshape([_ink_is_bright(plane) for plane in planes], (-1, 1, 1))
    return np.where(bright, 255 - planes, planes), bright


def _depth(planes: Ink, bright: npt.NDArray[np.bool_], stroke: int) -> Floats:
    """How much light the ink takes, float32 [H,W], of planes [C,H,W] on which it is dark.

    `bright` [C,1,1] says which of them are inverted; no stroke is as wide as `stroke` pixels.
    """
    closing = closed(planes, stroke)
    # The darker of ink and paper, by the brighter.
    dark, paper = planes.astype(np.float32), closing.astype(np.float32)
    darker = np.where(bright, 255 - paper, dark) + _LEAST_LIGHT
    depth: Floats = 1 - darker / (np.where(bright, 255 - dark, paper) + _LEAST_LIGHT)
    return depth[0] if len(depth) == 1 else _joined(depth)


def _ink(depth: Floats) -> Ink | None:
    """The ink uint8 [H,W] of that depth; None if there is none."""
    level = _otsu(depth)
    is_ink = depth > level
    if not is_ink.any():
        return None
    peak, paper = float(depth[is_ink].mean()), depth[~is_ink]
    contrast = (peak - float(paper.mean())) / (float(paper.std()) + 1e-3)
    if peak < LEAST_CONTRAST or contrast < _LEAST_SEPARATION:
        return None
    floor = 0.5 * level  # the edge of a stroke
    ink: Ink = np.clip((depth - floor) * (255 / (peak - floor)), 0, 255).astype(np.uint8)
    return ink


def _spread(depths: Floats) -> float:
    """The standard deviation of depths by their mean."""
    return float(depths.std() / depths.mean())


def closed(planes: Ink, size: int) -> Ink:
    """The closing of uint8 [C,H,W] with a square of `size` pixels, an odd number."""
    padded = planes
    for axis in (1, 2):  # `np.pad` takes as long as the rest
        along = np.arange(1 - size, planes.shape[axis] + size - 1)
        padded = padded.take(along, axis, mode="clip")
    return extreme(extreme(padded, size, np.maximum), size, np.minimum)


def extreme(values: npt.NDArray[_Value], size: int, of: np.ufunc) -> npt.NDArray[_Value]:
    """The largest (or smallest) in each square of [...,H,W]: [...,H+1-size,W+1-size]."""
    for axis in (-2, -1):
        values = _extreme(values, size, axis, of)
    return values


def _extreme(
    values: npt.NDArray[_Value], size: int, axis: int, of: np.ufunc
) -> npt.NDArray[_Value]:
    """The largest (or smallest) of each `size` neighbours along an axis, which becomes shorter."""
    length = values.shape[axis] - size + 1
    done = 1

    def part(start: int, count: int) -> npt.NDArray[_Value]:
        index = [slice(None)] * values.ndim
        index[axis] = slice(start, start + count)
        part: npt.NDArray[_Value] = values[tuple(index)]
        return part

    while done < size:
        step = min(done, size - done)
        count = values.shape[axis] - step
        values = of(part(0, count), part(step, count))
        done += step
    return part(0, length)


def _stroke(shape: tuple[int, ...]) -> int:
    """The side of a square that is wider than any stroke on a page of this shape."""
    return max(3, max(shape) // 3 | 1)


def _ink_is_bright(grey: Ink) -> bool:
    """Whether the logarithm of grey is skewed to the bright side."""
    counts = np.array(Image.fromarray(grey).histogram())
    logs = _LOGS - counts @ _LOGS / grey.size
    return float(counts @ logs**3) > 0


def _has_colour(picture: Image.Image) -> bool:
    """Whether the channels of a picture in RGB differ by more than the noise of a camera."""
    values = np.asarray(picture).astype(np.int16)
    return bool(
        (np.abs(values[:, :, 0] - values[:, :, 1]) > 24).any()
        or (np.abs(values[:, :, 1] - values[:, :, 2]) > 24).any()
    )


def _joined(depth: Floats) -> Floats:
    """Planes [3,H,W] along the axis of their ink: [H,W]."""
    joined: Floats = (_ink_axis(depth) @ depth.reshape(3, -1)).reshape(depth.shape[1:])
    return joined


def _ink_axis(depth: Floats) -> Floats:
    """The axis [3] on which the second moment of planes [3,H,W] is largest, and ink positive."""
    flat = depth.reshape(3, -1)
    _, axes = np.linalg.eigh(flat @ flat.T)
    axis: Floats = axes[:, -1]
    return axis if (axis @ flat).sum() > 0 else -axis


def _otsu(depth: Floats) -> float:
    """Otsu's threshold of depths, which splits them into the two tightest classes.

    Source: N. Otsu, "A threshold selection method from gray-level histograms", 1979.
    """
    low, high = float(depth.min()), float(depth.max())
    if high - low < 1e-6:
        return high
    counts, edges = np.histogram(depth, 64, (low, high))
    below = counts.cumsum().astype(np.float64)  # the square below exceeds 64 bits
    sums = (counts * np.arange(64)).cumsum()
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums[-1] * below - sums * below[-1]) ** 2 / (below * above)
    best = int(np.nanargmax(np.where(above > 0, between, -1)))
    return float(edges[best + 1])


def _before_turning(part: Part, turn: int) -> Part:
    """Where a part of the upright picture is in the file, for an orientation of EXIF."""
    left, top, right, bottom = part
    if turn >= 5:
        left, top, right, bottom = top, left, bottom, right
    if turn in (2, 3, 7, 8):
        left, right = 1 - right, 1 - left
    if turn in (3, 4, 6, 7):
        top, bottom = 1 - bottom, 1 - top
    return left, top, right, bottom


def _plain(band: Image.Image, factor: int) -> Image.Image:
    """A band of any mode, reduced: in L, RGB, LA or RGBA, or F for more than 8 bits."""
    if band.mode.startswith(("I", "F")):
        band = Image.fromarray(np.asarray(band).astype(np.float32))
    elif band.has_transparency_data:
        band = band.convert("LA" if band.mode in ("L", "LA", "1") else "RGBA")
    elif band.mode not in ("L", "RGB"):
        band = band.convert("L" if band.mode == "1" else "RGB")
    return band.reduce(factor) if factor > 1 else band


def _in_range(picture: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, stretched from the range that it uses to 0..255."""
    values = np.asarray(picture)
    low, high = float(values.min()), float(values.max())
    if high - low > 0:
        values = (values - low) * (255 / (high - low))
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _on_paper(picture: Image.Image) -> Image.Image:
    """A picture with transparency on the paper that its ink stands out from.

    If most of it is transparent, it is ink: bright ink gets black paper, dark ink white. Otherwise
    the paper is opaque and is continued.
    """
    alpha = np.asarray(picture.getchannel("A"))
    colour = picture.convert("L" if picture.mode == "LA" else "RGB")
    grey = np.asarray(colour.convert("L"))
    opaque = alpha > 127
    share = opaque.mean()
    if not opaque.any():
        paper = 255 if not alpha.any() or grey[alpha > 0].mean() < 128 else 0
    elif share < 0.5:
        paper = 255 if grey[opaque].mean() < 128 else 0
    else:
        paper = int(np.median(grey[opaque]))
    page = Image.new(colour.mode, picture.size, (paper,) * len(colour.getbands()))
    page.paste(colour, mask=picture.getchannel("A"))
    return page
