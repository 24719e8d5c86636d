"""Refuses PNG, JPEG and GIF files that take long to read although they have few pixels.

Pillow reads the chunks of a PNG, the segments of a JPEG and the blocks of a GIF in Python, some 2
us each; bytes between segments or blocks, one by one. 8 MB of them take 1 to 3 s. And libjpeg goes
over the whole picture once per scan of a progressive file. Real files have a few dozen segments,
chunks of pixels of at least 8 KB, and 10 scans.

Source: PNG (ISO/IEC 15948), 5.3; JPEG (ITU-T T.81), B.1.1; GIF89a, 15 and 24.
"""

from __future__ import annotations

from service.core.errors import InvalidArgument

_FEWEST_PARTS = 64
_BYTES_PER_PART = 1024
_MAX_SCANS = 100
# Texts and profiles in a PNG, which Pillow inflates to 1 MB each when it opens the file.
DEFLATED = (b"zTXt", b"iTXt", b"iCCP")
_MAX_DEFLATED = 8
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8"
_GIF_SIGNATURE = b"GIF8"
_SCAN = b"\xff\xda"
_STRETCH = 256 * 1024  # bytes
# Markers without a length: TEM, RSTn, SOI, EOI and those that Pillow treats like them.
_ALONE = {0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)}


def check_parts(body: bytes) -> None:
    """Raise InvalidArgument for a PNG, JPEG or GIF of too many parts. Anything else passes."""
    most = _FEWEST_PARTS + len(body) // _BYTES_PER_PART
    is_jpeg, is_long = body.startswith(_JPEG_SIGNATURE), False
    if is_jpeg:
        is_long = _jpeg_is_long(body, most)
    elif body.startswith(_PNG_SIGNATURE):
        is_long = _png_is_long(body, most)
    elif body.startswith(_GIF_SIGNATURE):
        is_long = _gif_is_long(body, most)
    if is_long:
        raise InvalidArgument(f"image: the file has more than {most} parts; save it again.")
    # One call for 8 MB would hold Python's global lock for some 8 ms.
    stretches = range(0, len(body) if is_jpeg else 0, _STRETCH)
    if sum(body.count(_SCAN, at, at + _STRETCH + 1) for at in stretches) > _MAX_SCANS:
        raise InvalidArgument(f"image: the JPEG has more than {_MAX_SCANS} scans; save it again.")


def _png_is_long(body: bytes, most: int) -> bool:
    position = len(_PNG_SIGNATURE)
    inflated = 0
    for _ in range(most):
        kind = body[position + 4 : position + 8]
        if len(kind) < 4 or kind == b"IEND":
            return False
        if kind in DEFLATED:
            inflated += 1
            if inflated > _MAX_DEFLATED:
                return True
        position += 12 + int.from_bytes(body[position : position + 4])
    return True


def _jpeg_is_long(body: bytes, most: int) -> bool:
    """Whether Pillow takes more than `most` steps up to the first scan."""
    position, steps = 0, 0
    while steps < most:
        marker = body.find(b"\xff", position)
        if marker < 0:
            return len(body) - position + steps > most
        steps += 1 + marker - position
        code = body[marker + 1 : marker + 2]
        if not code or code == b"\xda":
            return False
        if code == b"\xff":
            position = marker + 1
        elif code[0] in _ALONE or code == b"\0":
            position = marker + 2
        else:
            position = marker + 2 + max(2, int.from_bytes(body[marker + 2 : marker + 4]))
    return True


def _gif_is_long(body: bytes, most: int) -> bool:
    """Whether Pillow takes more than `most` steps up to the first frame."""
    flags = body[10] if len(body) > 10 else 0
    position, steps = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0), 0
    while steps < most:
        steps += 1
        kind = body[position : position + 1]
        if kind in (b"", b",", b";"):
            return False
        position += 1
        if kind != b"!":
            continue
        position += 1
        while steps < most and (size := int.from_bytes(body[position : position + 1])):
            steps += 1
            position += 1 + size
        position += 1
    return True
