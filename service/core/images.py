"""Pictures of digits to the 28x28 pixels that MNIST models were trained on.

MNIST digits are bright ink on a dark background, scaled into a 20x20 box with their aspect ratio
kept, and placed so that the centre of mass is the centre of the 28x28 field (LeCun et al., "The
MNIST database of handwritten digits"). A 28x28 picture that is bright on dark is used unchanged.
Every other picture goes through the same steps here, because resizing a drawing or a photo alone
gives a confident wrong answer.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from service.core.digits import SIDE, Pixels
from service.core.errors import InvalidArgument, RequestTooLarge

_BOX = 20
# Pillow's own limit would only warn. `open_image` has a limit that raises.
Image.MAX_IMAGE_PIXELS = None
# Grey levels of 255: less contrast to the background than this is paper, not ink.
_LEAST_CONTRAST = 32
_EDGES = np.s_[0, :], np.s_[-1, :], np.s_[:, 0], np.s_[:, -1]


def open_image(body: bytes, max_pixels: int) -> Image.Image:
    """Read the header of a PNG or JPEG. Nothing is decoded yet, so this is cheap and bounded.

    Raises InvalidArgument if it is neither, RequestTooLarge if it has more than `max_pixels`.
    """
    if not body:
        raise InvalidArgument("image: the body is empty; send a PNG or JPEG file.")
    try:
        image = Image.open(io.BytesIO(body), formats=("PNG", "JPEG"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise InvalidArgument("image: this is not a PNG or JPEG image.") from None
    if image.width * image.height > max_pixels:
        raise RequestTooLarge(
            f"image: {image.width}x{image.height} has more than {max_pixels} pixels."
        )
    return image


def to_pixels(image: Image.Image) -> Pixels:
    """Decode a picture into MNIST's form: uint8 [1,28,28], bright ink on dark.

    Raises InvalidArgument if the data is damaged or the picture is blank.
    """
    grey = _grey(image)
    # The median of the border is the background. numpy's takes six times as long for so few values.
    border = sorted(b"".join([grey[edge].tobytes() for edge in _EDGES]))
    background = (border[(len(border) - 1) // 2] + border[len(border) // 2]) / 2
    if grey.shape == (SIDE, SIDE) and background < 128:
        return grey[None]
    ink = 255.0 - grey if background >= 128 else grey.astype(np.float64)
    paper = 255.0 - background if background >= 128 else background
    return _centred(np.clip(ink - paper, 0, 255))[None]


def _grey(image: Image.Image) -> Pixels:
    try:
        if image.has_transparency_data:
            # People look at transparent drawings on a white page.
            drawn = image.convert("RGBA")
            page = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(page, drawn)
        elif image.mode.startswith("I"):
            # 16-bit grey: convert("L") clips values instead of scaling them.
            return (np.asarray(image, dtype=np.uint32) >> 8).astype(np.uint8)
        return np.asarray(image if image.mode == "L" else image.convert("L"), dtype=np.uint8)
    # AssertionError: Pillow's for a PNG of colour type 3 without a palette.
    except (OSError, ValueError, SyntaxError, EOFError, AssertionError):
        raise InvalidArgument("image: the file is damaged or cut short.") from None


def _centred(ink: npt.NDArray[np.float64]) -> Pixels:
    """Ink (0 = paper) of any size to [28,28], by the steps that made the MNIST digits."""
    peak = ink.max()
    if peak < _LEAST_CONTRAST:
        raise InvalidArgument("image: it is blank; no digit stands out from the background.")
    # Shadows and JPEG noise stay below a quarter of the darkest stroke.
    ink = np.where(ink < peak / 4, 0.0, ink) * (255.0 / peak)
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    digit = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

    scale = _BOX / max(digit.shape)
    size = (max(1, round(digit.shape[1] * scale)), max(1, round(digit.shape[0] * scale)))
    # When shrinking, a box filter averages every source pixel, as MNIST's anti-aliasing did.
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    fitted = np.asarray(Image.fromarray(digit.astype(np.uint8)).resize(size, method), np.float64)

    height, width = fitted.shape
    mass = fitted.sum()
    if not mass:  # only specks far apart, which averaging removed
        raise InvalidArgument("image: it is blank but for specks; no digit stands out.")
    centre_y = (fitted.sum(axis=1) @ np.arange(height)) / mass
    centre_x = (fitted.sum(axis=0) @ np.arange(width)) / mass
    # Measured over the 10,000 test images, the centre of mass is at index (13.99, 14.01) +- 0.29.
    top = int(np.clip(round(SIDE / 2 - centre_y), 0, SIDE - height))
    left = int(np.clip(round(SIDE / 2 - centre_x), 0, SIDE - width))
    field = np.zeros((SIDE, SIDE), np.uint8)
    field[top : top + height, left : left + width] = fitted.astype(np.uint8)
    return field
