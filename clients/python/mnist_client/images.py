"""Images as people have them (arrays, PIL images, paths, bytes), and what is sent of them."""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mnist_client.errors import InvalidImage

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image as PilImage

    Image: TypeAlias = (
        npt.NDArray[np.uint8] | PilImage | str | os.PathLike[str] | bytes | bytearray | memoryview
    )
else:  # numpy and PIL are not imported before they are needed
    Image: TypeAlias = Any

PIXELS = "application/octet-stream"
IMAGE_BYTES = 784
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels: grey, grey and alpha, RGB, RGBA
# Modes of Pillow that PNG can hold and the server reads without loss.
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")


@dataclass(frozen=True, slots=True)
class Payload:
    """What is sent of an image: a picture's file, or the 784 pixels of one image."""

    data: bytes
    media_type: str

    @property
    def is_pixels(self) -> bool:
        """Whether it is raw pixels, which can share a request with others."""
        return self.media_type == PIXELS


def media_type_of(data: bytes) -> str:
    """The media type of a picture's file by its first bytes, empty if it is none."""
    if data.startswith(_PNG):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    # "BM" can be two pixels as well; a BMP states its size.
    if data[:2] == b"BM" and (len(data) != IMAGE_BYTES or data[2:6] == struct.pack("<I", 784)):
        return "image/bmp"
    return ""


def payload_of(image: Image, *, as_picture: bool = False) -> Payload:
    """What to send of an image. Raises InvalidImage.

    An array is uint8: [28,28] for MNIST's pixels (0 is background, 255 is ink), [H,W] for a grey
    picture of another size, [H,W,3] or [H,W,4] for colour. Bytes are a picture's file, or 784
    pixels. With `as_picture`, pixels become a picture too, since `read` takes nothing else.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _of_bytes(bytes(image), as_picture)
    if isinstance(image, (str, os.PathLike)):
        try:
            data = Path(image).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = getattr(error, "strerror", None) or error
            raise InvalidImage(f"The picture '{image}' cannot be read: {reason}.") from None
        media_type = media_type_of(data)
        if not media_type:
            raise InvalidImage(f"The file '{image}' is not a PNG, JPEG, WebP, BMP or GIF image.")
        return Payload(data, media_type)
    pil = sys.modules.get("PIL.Image")
    if pil is not None and isinstance(image, pil.Image):
        return Payload(_of_pil(image), "image/png")
    if hasattr(image, "__array__"):
        import numpy as np

        return _of_array(np.asarray(image), as_picture)
    raise InvalidImage(
        f"image: has type '{type(image).__name__}'; give an array, a PIL image, a path or bytes."
    )


def _of_bytes(data: bytes, as_picture: bool) -> Payload:
    if media_type := media_type_of(data):
        return Payload(data, media_type)
    if len(data) != IMAGE_BYTES:
        raise InvalidImage(
            f"image: {len(data)} bytes are not a PNG, JPEG, WebP, BMP or GIF image, nor the 784 "
            "pixels of one image."
        )
    if as_picture:
        return Payload(_png(data, 28, 28, 1), "image/png")
    return Payload(data, PIXELS)


def _of_pil(image: PilImage) -> bytes:
    from PIL import ImageOps

    if image.mode == "F":
        raise InvalidImage("image: a PIL image of mode F has no known range; convert it to mode L.")
    file = io.BytesIO()
    try:
        # A PNG from a photo keeps no EXIF, so it is turned as EXIF says.
        turned = ImageOps.exif_transpose(image)
        if turned.mode not in _PNG_MODES:
            turned = turned.convert("RGBA" if turned.mode in ("La", "PA", "RGBa") else "RGB")
        turned.save(file, "PNG", compress_level=1)
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for damaged files
        raise InvalidImage(f"image: the PIL image cannot be saved as a PNG: {error}.") from None
    return file.getvalue()


def _of_array(array: npt.NDArray[Any], as_picture: bool) -> Payload:
    import numpy as np

    if array.dtype != np.uint8:
        raise InvalidImage(
            f"image: the array is {array.dtype}; it must be uint8, from 0 to 255. For values from "
            "0 to 1: (255 * array).astype('uint8')."
        )
    if array.ndim == 3 and array.shape[0] == 1:  # one image of a batch
        array = array[0]
    elif array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    shape = array.shape
    if not (array.ndim == 2 or (array.ndim == 3 and shape[2] in _PNG_COLOURS)) or 0 in shape:
        several = " For several images, call predict_many." if shape[1:] == (28, 28) else ""
        raise InvalidImage(
            f"image: the array has shape {list(shape)}; one image is [28,28], or a picture as "
            f"[H,W], [H,W,3] or [H,W,4].{several}"
        )
    if shape == (28, 28) and not as_picture:
        return Payload(array.tobytes(), PIXELS)
    channels = shape[2] if array.ndim == 3 else 1
    return Payload(_png(array.tobytes(), shape[0], shape[1], channels), "image/png")


def _png(pixels: bytes, height: int, width: int, channels: int) -> bytes:
    """A PNG of 8 bits per channel: each row is preceded by its filter, 0 for none."""
    size = width * channels
    rows = b"".join(b"\0" + pixels[at : at + size] for at in range(0, height * size, size))
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_COLOURS[channels], 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")
    return _PNG + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
