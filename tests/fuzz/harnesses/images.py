"""Pictures: PNG, JPEG, WebP, GIF and BMP, damaged anywhere, and PNG files made from a recipe.

What a model of digits and other models see of them has the model's size. The first byte chooses: 0
is a recipe for a PNG, anything else begins a file. Checksums of PNG are repaired, because a decoder
stops at the first wrong one.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image

from service.core.classification.pictures import picture_input, rule_of
from service.core.errors import InvalidArgument, RequestTooLarge
from service.core.pictures.digit import find_digit
from service.core.pictures.files import open_picture
from service.core.tensors import TensorSpec
from tests.fuzz.fields import Fields

CI_RUNS = 5_000
_MAX_PIXELS = 64 * 64
_MAX_DECODED_PIXELS = 32 * 32  # a larger JPEG is decoded at a part of its size
# What pictures become for other models than those of digits.
_FORMS = [
    picture_input(rule_of(rule), [TensorSpec("x", "UINT8", shape)])
    for rule, shape in (
        ({}, (-1, 3, 5, 9)),
        ({"resize": "pad", "filter": "lanczos"}, (-1, 9, 5)),
        ({"resize": "stretch"}, (-1, 3, 1, 2)),
    )
]
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Samples per pixel of each colour type (PNG, 11.2.2); others are malformed.
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def _file(mode: str, size: tuple[int, int], kind: str, **options: object) -> bytes:
    rng = np.random.default_rng(0)
    bands = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4, "LA": 2}.get(mode, 1)
    pixels = rng.integers(0, 255, (size[1], size[0], bands), np.uint8)
    base = Image.fromarray(pixels.squeeze(2) if bands == 1 else pixels, mode if bands > 1 else "L")
    file = io.BytesIO()
    base.convert(mode).save(file, kind, **options)
    return file.getvalue()


SEEDS = [
    *(_file(mode, (5, 4), "PNG") for mode in ("L", "RGB", "RGBA", "LA", "P", "1", "I;16")),
    _file("L", (28, 28), "PNG", compress_level=9),
    _file("RGB", (9, 9), "PNG", transparency=(1, 2, 3)),
    *(_file(mode, (8, 8), "JPEG", quality=20) for mode in ("L", "RGB", "CMYK")),
    _file("RGB", (17, 9), "JPEG", progressive=True),
    *(_file("L", (60, 50), "JPEG", progressive=whole) for whole in (True, False)),
    *(_file(mode, (9, 7), "WEBP") for mode in ("RGB", "RGBA")),
    *(_file(mode, (9, 7), "GIF") for mode in ("P", "L")),
    *(_file(mode, (9, 7), "BMP") for mode in ("1", "L", "P", "RGB")),
    *(
        bytes([0, kind, depth, 4, 4, 0, 3]) + bytes(range(60))
        for kind, depth in (*((0, 1), (0, 16), (2, 8), (3, 2), (3, 8), (4, 8), (6, 16)),)
    ),
]
TOKENS = [b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"iCCP", b"eXIf", b"acTL", b"fcTL"]
TOKENS += [b"RIFF", b"WEBP", b"VP8X", b"VP8 ", b"VP8L", b"ANIM", b"ANMF", b"GIF89a", b"BM"]


def check(data: bytes) -> None:
    if data[:1] == b"\0":
        data = _png(Fields(data[1:]))
    _check(data)
    if data.startswith(_SIGNATURE) and (repaired := _with_checksums(data)) != data:
        _check(repaired)


def _check(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = open_picture(data, _MAX_PIXELS, _MAX_DECODED_PIXELS)
            assert image.width * image.height <= _MAX_PIXELS
            pixels = find_digit(image).pixels
        except (InvalidArgument, RequestTooLarge) as error:
            assert error.message.startswith("image: ")
            return
        assert pixels.shape == (1, 28, 28)
        assert pixels.dtype == np.uint8
        # The same file gives the same pixels.
        assert (
            find_digit(open_picture(data, _MAX_PIXELS, _MAX_DECODED_PIXELS)).pixels == pixels
        ).all()
        for form in _FORMS:
            pixels = form.pixels(open_picture(data, _MAX_PIXELS, _MAX_DECODED_PIXELS))
            assert (pixels.shape, pixels.dtype) == ((1, *form.shape), np.uint8)


def _png(fields: Fields) -> bytes:
    """A PNG of any colour type, depth and size whose lines are the bytes of the recipe."""
    kind, depth = fields.byte() % 8, fields.of((1, 2, 4, 8, 16, 3))
    width, height, interlaced, palette = (fields.byte() for _ in range(4))
    options = fields.byte()
    transparency = fields.take(options % 9)
    header = struct.pack(
        ">IIBBBBB", width % 80, height % 80, depth, kind, 0, options // 128, interlaced % 3
    )
    bits = _SAMPLES.get(kind, 1) * depth * (width % 80)
    lines = fields.take(256)
    size = (bits + 7) // 8 + 1
    # Lines repeat; the first byte of a line is its filter.
    data = b"".join(
        bytes([lines[row % len(lines)] % 6 if lines else 0]) + (lines * size)[row : row + size - 1]
        for row in range(height % 80)
    )
    return b"".join(
        (
            *(_SIGNATURE, _chunk(b"IHDR", header)),
            *([_chunk(b"PLTE", lines[: palette % 100])] if palette else []),
            *([_chunk(b"tRNS", transparency)] if transparency else []),
            _chunk(fields.of((b"IDAT", b"iCCP", b"zTXt", b"fdAT")), fields.take(options % 16))
            if options & 64
            else b"",
            _chunk(b"IDAT", zlib.compress(data, 1)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def _with_checksums(data: bytes) -> bytes:
    """The file with the checksum that each chunk should have."""
    output, at = bytearray(data), len(_SIGNATURE)
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        end = at + 8 + size
        if end + 4 > len(data):
            break
        struct.pack_into(">I", output, end, zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(output)
