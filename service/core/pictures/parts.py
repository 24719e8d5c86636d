"""Refuses PNG and JPEG files that take long to read although they have few pixels.

Pillow reads the chunks of a PNG and the segments of a JPEG in Python, some 2 us each, and a JPEG's
bytes between segments one by one: 8 MB of them take 1 to 3 s. And libjpeg goes over the whole
picture once per scan of a progressive file. Real files have a few dozen segments, chunks of pixels
of at least 8 KB, and 10 scans.

Source: PNG (ISO/IEC 15948), 5.3; JPEG (ITU-T T.81), B.1.1.
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
_SCAN = b"\xff\xda"
# Markers without a length: TEM, RSTn, SOI, EOI and those that Pillow treats like them.
_ALONE = {0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)}


def check_parts(body: bytes) -> None:
    """Raise InvalidArgument for a PNG or JPEG of too many parts. Anything else passes."""
    most = _FEWEST_PARTS + len(body) // _BYTES_PER_PART
    is_jpeg = body.startswith(b"\xff\xd8")
    if (body.startswith(_PNG_SIGNATURE) and _png_is_long(body, most)) or (
        is_jpeg and _jpeg_is_long(body, most)
    ):
        raise InvalidArgument(f"image: the file has more than {most} parts; save it again.")
    if is_jpeg and body.count(_SCAN) > _MAX_SCANS:
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
