"""Files of pictures: what may be opened, and how much of it is decoded.

PNG, JPEG, WebP, BMP and GIF (its first frame). A picture takes up to 4 bytes per pixel of what is
decoded, and while it is decoded, a JPEG in several scans or a WebP up to 8 more.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from typing import Literal

# The formats are imported here; otherwise the first picture makes Pillow import all of its formats,
# for some 50 ms.
from PIL import Image, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError, WebPImagePlugin

from service.core.errors import InvalidArgument, RequestTooLarge

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
# Pillow's own limit would only warn. `open_picture` has a limit that raises.
Image.MAX_IMAGE_PIXELS = None
# Pillow keeps the texts of a PNG; it allows 64 MB of them.
PngImagePlugin.MAX_TEXT_MEMORY = 4 * PngImagePlugin.MAX_TEXT_CHUNK
# Bytes per pixel of a decoded picture, and while it is decoded: libjpeg has up to 8 more for a JPEG
# in several scans, and libwebp 8 more.
_DECODED_BYTES, _COSTLY_BYTES = 4, 12
# What Pillow raises for damaged files. AssertionError: a PNG of colour type 3 without a palette.
_PNG = b"\x89PNG\r\n\x1a\n"
DAMAGED = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, AssertionError)
IS_DAMAGED = "image: the file is damaged or cut short; save it again."


class Room:
    """Memory for pictures, for several threads: `limit` bytes. One that needs more has it alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._first = threading.Lock()  # held by the thread that is the next to get room
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def of(self, size: int) -> Iterator[None]:
        """Wait, in the order of arrival, until there is room; hold it during the block."""
        with self._first, self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + size <= self._limit)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


class _WebP(WebPImagePlugin.WebPImageFile):
    """A WebP whose decoder is freed once the first frame is decoded.

    Pillow keeps it, with 8 bytes per pixel, until the picture itself is gone.
    """

    def _get_next(self) -> tuple[bytes, int, int]:
        frame = super()._get_next()
        del self._decoder
        return frame


def open_picture(body: bytes, max_pixels: int, max_decoded_pixels: int) -> Image.Image:
    """Read the header of a picture. Nothing is decoded yet.

    A JPEG of more than `max_decoded_pixels` will be decoded at half its size, a quarter or an
    eighth. Raises InvalidArgument if it is of no format in FORMATS; RequestTooLarge if it has more
    than `max_pixels`, or more than `max_decoded_pixels` and must be decoded as a whole.
    """
    if not body:
        raise InvalidArgument("image: the body is empty; send a PNG, JPEG, WebP, BMP or GIF file.")
    if body[:4] == b"RIFF":  # libwebp takes 8 bytes per pixel as soon as Pillow opens the file
        size = _webp_size(body)
        _check_size(size, max_pixels, max_decoded_pixels, can_be_reduced=False)
    elif body[:2] == b"BM" and body[30:31] in (b"\1", b"\2"):
        # Pillow expands these in Python, some 0.3 us per pixel.
        raise InvalidArgument("image: the BMP is run-length encoded; save it without compression.")
    image: Image.Image
    try:
        if body[:4] == b"RIFF":
            image = _WebP(io.BytesIO(body))
        elif body.startswith(_PNG):
            image = PngImagePlugin.PngImageFile(io.BytesIO(body))
        else:
            image = Image.open(io.BytesIO(body), formats=FORMATS)
    except (UnidentifiedImageError, *DAMAGED):
        raise InvalidArgument("image: this is not a PNG, JPEG, WebP, BMP or GIF file.") from None
    pixels = image.width * image.height
    if pixels <= min(max_pixels, max_decoded_pixels):
        return image
    _check_size(image.size, max_pixels, max_decoded_pixels, can_be_reduced=_can_be_reduced(image))
    scale = next((n for n in (2, 4) if pixels <= max_decoded_pixels * n * n), 8)
    image.draft(None, (image.width // scale, image.height // scale))
    return image


def memory_of(image: Image.Image) -> int:
    """The most bytes that an opened picture takes while it is decoded."""
    is_costly = image.format == "WEBP" or (
        isinstance(image, JpegImagePlugin.JpegImageFile) and not _can_be_reduced(image)
    )
    return image.width * image.height * (_COSTLY_BYTES if is_costly else _DECODED_BYTES)


def decode(image: Image.Image) -> None:
    """Decode an opened picture in place.

    Raises InvalidArgument if the data is damaged.
    """
    try:
        image.load()
        if image.mode == "P" and not (image.palette and image.palette.palette):
            raise ValueError("no palette")
    except DAMAGED:
        raise InvalidArgument(IS_DAMAGED) from None


def orientation(image: Image.Image) -> int:
    """The orientation (1 to 8) in the EXIF data of a decoded picture; 1 if there is none.

    Source: EXIF 2.32, 4.6.4 A: tag 0x0112 of the first directory, a SHORT. Pillow's reader takes
    time for every entry of the directory.
    """
    data = image.info.get("exif")
    if not isinstance(data, bytes):
        return 1
    data = data.removeprefix(b"Exif\0\0")
    if data[:2] not in (b"II", b"MM"):
        return 1
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    start = int.from_bytes(data[4:8], order)
    entries = min(int.from_bytes(data[start : start + 2], order), 64)
    tag = (0x0112).to_bytes(2, order)
    for at in range(start + 2, start + 2 + 12 * entries, 12):
        if data[at : at + 2] == tag:
            value = int.from_bytes(data[at + 8 : at + 10], order)
            return value if 1 <= value <= 8 else 1
    return 1


def _check_size(
    size: tuple[int, int], max_pixels: int, max_decoded_pixels: int, *, can_be_reduced: bool
) -> None:
    most, setting = max_pixels, "max_image_pixels"
    if max_decoded_pixels < max_pixels and not can_be_reduced:
        most, setting = max_decoded_pixels, "max_decoded_pixels"
    if size[0] * size[1] > most:
        raise RequestTooLarge(
            f"image: {size[0]}x{size[1]} has more than {most} pixels ({setting}); "
            "send it at a smaller size."
        )


def _webp_size(body: bytes) -> tuple[int, int]:
    """Width and height in the header of a WebP file; (0, 0) if it has none.

    Source: RFC 9649, 2.5 to 2.7 and 3.4.
    """
    kind = body[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[24:27], "little"), 1 + int.from_bytes(body[27:30], "little")
    if kind == b"VP8 ":
        width, height = (int.from_bytes(body[at : at + 2], "little") for at in (26, 28))
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        bits = int.from_bytes(body[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return 0, 0


def _can_be_reduced(image: Image.Image) -> bool:
    """Whether this is a JPEG that is neither progressive nor in several scans.

    libjpeg holds the coefficients of the whole picture for those. Pillow has read the header of the
    first scan (ITU T.81, B.2.3): its length, the number of its components, two bytes for each of
    them, and three more.
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or "progressive" in image.info:
        return False
    if not isinstance(image.fp, io.BytesIO):  # decoded already
        return False
    components = image.layers
    begin = bytes([0xFF, 0xDA, 0, 6 + 2 * components, components])
    start = max(image.fp.tell() - 8 - 2 * components, 0)
    return bytes(image.fp.getbuffer()[start : start + len(begin)]) == begin
