"""Small files of large pictures: each is as large as a worker accepts, in a form that costs it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

# Bytes per sample and samples per pixel, by PNG's colour type (PNG, 11.2.2).
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# First column and row of each pass, and the steps between columns and rows (PNG, 8.2).
_ADAM_7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    side: int, *, depth: int, colour: int, interlaced: bool = False, extra: bytes = b""
) -> bytes:
    """A square PNG, white with a black bar (for a palette, colours 1 and 0)."""
    samples = _SAMPLES[colour]
    page = np.ones((side, side), bool)
    page[side // 4 : -side // 4, side // 2 - side // 16 : side // 2 + side // 16] = False
    packed = zlib.compressobj(9)
    data = b""
    for x, y, dx, dy in _ADAM_7 if interlaced else ((0, 0, 1, 1),):
        for row in page[y::dy, x::dx]:
            bits = np.repeat(row, samples * depth)
            if colour == 3 and depth > 1:  # the index 1, not 255
                bits.reshape(-1, depth)[:, :-1] = False
            if colour in (4, 6):
                bits.reshape(len(row), samples, depth)[:, -1] = True  # opaque
            data += packed.compress(b"\0" + np.packbits(bits).tobytes())
    data += packed.flush()
    header = struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, interlaced)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + extra
        + _chunk(b"IDAT", data)
        + _chunk(b"IEND", b"")
    )


def jpeg(side: int, mode: str = "RGB", **options: object) -> bytes:
    """A square JPEG, white with a black bar, without subsampling."""
    page = Image.new("L", (side, side), 255)
    page.paste(0, (side // 2 - side // 16, side // 4, side // 2 + side // 16, side * 3 // 4))
    buffer = io.BytesIO()
    page.convert(mode).save(buffer, "JPEG", subsampling=0, **options)
    return buffer.getvalue()


def jpeg_in_scans(side: int, components: int = 3) -> bytes:
    """A square baseline JPEG with one scan per component; it is grey all over, so it is blank."""
    blocks = (side // 8) ** 2

    def segment(marker: int, data: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, 2 + len(data)) + data

    ids = range(1, components + 1)
    parts = [b"\xff\xd8", segment(0xDB, b"\0" + bytes([1] * 64))]
    frame = struct.pack(">BHHB", 8, side, side, components)
    parts.append(segment(0xC0, frame + b"".join(bytes([i, 0x11, 0]) for i in ids)))
    for table in (0x00, 0x10):  # DC, AC: one code, `0`, for a difference of 0 and the end of block
        parts.append(segment(0xC4, bytes([table, 1, *[0] * 15, 0])))
    for i in ids:
        parts.append(segment(0xDA, bytes([1, i, 0, 0, 63, 0])) + bytes(blocks * 2 // 8))
    return b"".join(parts) + b"\xff\xd9"


def other(side: int, kind: str, mode: str = "RGB", **options: object) -> bytes:
    """A square picture in another format, white with a black bar."""
    page = Image.new("L", (side, side), 255)
    page.paste(0, (side // 2 - side // 16, side // 4, side // 2 + side // 16, side * 3 // 4))
    buffer = io.BytesIO()
    page.convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def pictures(decoded_pixels: int, jpeg_pixels: int) -> Iterator[tuple[str, bytes]]:
    """Pictures of at most these numbers of pixels, with their names."""
    side = int(decoded_pixels**0.5)
    palette = _chunk(b"PLTE", bytes([0, 0, 0, 255, 255, 255]))
    transparency = _chunk(b"tRNS", bytes([255, 254]))
    for colour, depths in {0: (1, 8, 16), 2: (8, 16), 3: (1, 8), 4: (8, 16), 6: (8, 16)}.items():
        extra = palette + transparency if colour == 3 else b""
        for depth in depths:
            for interlaced in (False, True):
                name = f"PNG, colour type {colour}, {depth} bit{', interlaced' * interlaced}"
                yield (
                    name,
                    png(side, depth=depth, colour=colour, interlaced=interlaced, extra=extra),
                )
    grey = _chunk(b"tRNS", struct.pack(">H", 5))
    yield "PNG, grey with a transparent level", png(side, depth=8, colour=0, extra=grey)
    text = _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000))) * 100
    yield "PNG with 100 MB of text", png(side, depth=8, colour=6, extra=text)
    for mode in ("L", "RGB", "CMYK"):
        yield f"JPEG, {mode}", jpeg(int(jpeg_pixels**0.5), mode)
        yield f"JPEG, {mode}, progressive", jpeg(side, mode, progressive=True)
        yield (
            f"JPEG, {mode}, progressive, large",
            jpeg(int(jpeg_pixels**0.5), mode, progressive=True),
        )
    for components in (3, 4):
        yield f"JPEG, {components} scans", jpeg_in_scans(side // 8 * 8, components)
        yield f"JPEG, {components} scans, large", jpeg_in_scans(int(jpeg_pixels**0.5), components)
    for large, size in (("", side), (", large", int(jpeg_pixels**0.5))):
        for mode in ("RGB", "RGBA"):
            yield f"WEBP, {mode}{large}", other(size, "WEBP", mode, method=0)
            yield (
                f"WEBP, {mode}, lossless{large}",
                other(size, "WEBP", mode, lossless=True, method=0),
            )
        yield f"GIF{large}", other(size, "GIF", "P")
    yield "GIF, transparent", other(side, "GIF", "P", transparency=255)
    frames = [Image.new("P", (side, side), colour) for colour in range(3)]
    yield "GIF, animated", other(side, "GIF", "P", save_all=True, append_images=frames)
    frames = [Image.new("RGB", (side, side), (colour, 0, 0)) for colour in range(3)]
    yield (
        "WEBP, animated",
        other(side, "WEBP", save_all=True, append_images=frames, method=0, minimize_size=True),
    )
    yield "BMP, 1 bit", other(side, "BMP", "1")
    yield "BMP, 8 bit", other(side, "BMP", "L")
    yield "BMP, 24 bit", other(int((decoded_pixels // 2) ** 0.5), "BMP", "RGB")
