"""Pictures of digits to the 28x28 pixels that MNIST models were trained on.

MNIST digits are bright ink on a dark background, scaled into a 20x20 box with their aspect ratio
kept, and placed so that the centre of mass is the centre of the 28x28 field (LeCun et al., "The
MNIST database of handwritten digits"). A 28x28 picture that is bright on dark is used unchanged.
Every other picture goes through the same steps here, because resizing a drawing or a photo alone
gives a confident wrong answer.

A picture takes some 5 bytes per pixel of what is decoded, and a JPEG in several scans up to 9 more.
The decoded picture is turned into grey in bands, and every later step is a table of 256 grey levels
or works on the 20x20 box, so there is never a second copy in colour or in floating point.
"""

from __future__ import annotations

import contextlib
import io
import threading

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError

from service.core.digits import SIDE, Pixels
from service.core.errors import InvalidArgument, RequestTooLarge

_BOX = 20
# Pillow's own limit would only warn. `open_image` has a limit that raises.
Image.MAX_IMAGE_PIXELS = None
# Pillow keeps the texts of a PNG; it allows 64 MB of them.
PngImagePlugin.MAX_TEXT_MEMORY = 4 * PngImagePlugin.MAX_TEXT_CHUNK
# Grey levels of 255: less contrast to the background than this is paper, not ink.
_LEAST_CONTRAST = 32
_EDGES = np.s_[0, :], np.s_[-1, :], np.s_[:, 0], np.s_[:, -1]
# Pixels that are converted to grey at a time.
_BAND_PIXELS = 256 * 1024
# JPEGs in several scans above this size are decoded one at a time: libjpeg holds 6 or 8 bytes more
# per pixel for them.
_MANY_COEFFICIENTS = 512 * 1024
_coefficients = threading.Lock()


def open_image(body: bytes, max_pixels: int, max_decoded_pixels: int) -> Image.Image:
    """Read the header of a PNG or JPEG. Nothing is decoded yet.

    A JPEG of more than `max_decoded_pixels` will be decoded at half its size, a quarter or an
    eighth. Raises InvalidArgument if it is neither; RequestTooLarge if it has more than
    `max_pixels`, or more than `max_decoded_pixels` and must be decoded as a whole.
    """
    if not body:
        raise InvalidArgument("image: the body is empty; send a PNG or JPEG file.")
    try:
        image = Image.open(io.BytesIO(body), formats=("PNG", "JPEG"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise InvalidArgument("image: this is not a PNG or JPEG image.") from None
    pixels = image.width * image.height
    if pixels <= min(max_pixels, max_decoded_pixels):
        return image
    most, setting = max_pixels, "max_image_pixels"
    if max_decoded_pixels < max_pixels and not _can_be_reduced(image):
        most, setting = max_decoded_pixels, "max_decoded_pixels"
    if pixels > most:
        raise RequestTooLarge(
            f"image: {image.width}x{image.height} has more than {most} pixels ({setting})."
        )
    scale = next((n for n in (2, 4) if pixels <= max_decoded_pixels * n * n), 8)
    image.draft(None, (image.width // scale, image.height // scale))
    return image


def to_pixels(image: Image.Image) -> Pixels:
    """Decode a picture into MNIST's form: uint8 [1,28,28], bright ink on dark.

    Raises InvalidArgument if the data is damaged or the picture is blank.
    """
    page = _grey(image)
    grey = np.asarray(page)
    # The median of the border is the background. numpy's takes six times as long for so few values.
    border = sorted(b"".join([grey[edge].tobytes() for edge in _EDGES]))
    background = (border[(len(border) - 1) // 2] + border[len(border) // 2]) / 2
    if grey.shape == (SIDE, SIDE) and background < 128:
        return grey[None]
    ink = np.arange(256.0)  # of each grey level; 0 is paper
    if background >= 128:
        ink, background = 255.0 - ink, 255.0 - background
    ink = np.clip(ink - background, 0, 255)
    peak = max(ink[grey.min()], ink[grey.max()])
    if peak < _LEAST_CONTRAST:
        raise InvalidArgument("image: it is blank; no digit stands out from the background.")
    # Shadows and JPEG noise stay below a quarter of the darkest stroke.
    ink = np.minimum(np.where(ink < peak / 4, 0.0, ink) * (255.0 / peak), 255.0)
    return _centred(page.point(ink.astype(np.uint8).tolist()))[None]


def _can_be_reduced(image: Image.Image) -> bool:
    """Whether this is a JPEG that is neither progressive nor in several scans.

    libjpeg holds the coefficients of the whole picture for those. Pillow has read the header of the
    first scan (ITU T.81, B.2.3): its length, the number of its components, two bytes for each of
    them, and three more.
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or "progressive" in image.info:
        return False
    assert isinstance(image.fp, io.BytesIO)
    components = image.layers
    begin = bytes([0xFF, 0xDA, 0, 6 + 2 * components, components])
    start = max(image.fp.tell() - 8 - 2 * components, 0)
    return bytes(image.fp.getbuffer()[start : start + len(begin)]) == begin


def _grey(image: Image.Image) -> Image.Image:
    """The decoded picture in 256 levels of grey (mode L)."""
    try:
        is_large_jpeg = image.format == "JPEG" and image.width * image.height > _MANY_COEFFICIENTS
        one_at_a_time = is_large_jpeg and not _can_be_reduced(image)
        with _coefficients if one_at_a_time else contextlib.nullcontext():
            image.load()
        if image.mode == "L" and not image.has_transparency_data:
            return image
        width, height = image.size
        rows = max(1, _BAND_PIXELS // width)
        if height <= rows:
            return _band(image)
        page = Image.new("L", image.size)
        for top in range(0, height, rows):
            page.paste(_band(image.crop((0, top, width, min(top + rows, height)))), (0, top))
        image.close()  # frees its pixels
        return page
    # AssertionError: Pillow's for a PNG of colour type 3 without a palette.
    except (OSError, ValueError, SyntaxError, EOFError, AssertionError):
        raise InvalidArgument("image: the file is damaged or cut short.") from None


def _band(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        # People look at transparent drawings on a white page.
        page = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(page, image.convert("RGBA"))
    elif image.mode.startswith("I"):
        # 16-bit grey: convert("L") clips values instead of scaling them.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("L")


def _centred(ink: Image.Image) -> Pixels:
    """Ink (0 = paper) of any size to [28,28], by the steps that made the MNIST digits."""
    digit = ink.crop(ink.getbbox())
    scale = _BOX / max(digit.size)
    size = (max(1, round(digit.width * scale)), max(1, round(digit.height * scale)))
    # When shrinking, a box filter averages every source pixel, as MNIST's anti-aliasing did.
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    fitted = np.asarray(digit.resize(size, method), np.float64)

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
