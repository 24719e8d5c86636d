from __future__ import annotations

import io
import struct
import sys
import zlib
from types import FrameType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.core.errors import InvalidArgument
from service.core.pictures.files import open_picture
from service.core.pictures.parts import check_parts
from tests.conftest import ROOT

PIXELS = np.random.default_rng(1).integers(0, 256, (200, 300, 3), np.uint8)


def saved(form: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


PNG, JPEG, GIF = saved("PNG"), saved("JPEG"), saved("GIF")
GIF_BLOCKS = 13 + 3 * 256  # where the blocks begin, after the palette


def steps_of_pillow(body: bytes) -> int:
    """How many functions Pillow calls to open a file."""
    steps = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal steps
        steps += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        open_picture(body, 10**8, 10**8)
    except InvalidArgument:
        pass
    finally:
        sys.setprofile(None)
    return steps


@pytest.mark.parametrize(
    "body",
    [
        PNG,
        JPEG,
        saved("JPEG", progressive=True, quality=95),
        saved("PNG", compress_level=0),
        (ROOT / "docs" / "seven.png").read_bytes(),
        b"",
        b"neither",
        GIF,
        GIF[:GIF_BLOCKS] + b"!\xfe\x05hello\0" * 20 + GIF[GIF_BLOCKS:],
        saved("WEBP", lossless=True),
        saved("BMP"),
        PNG[:33] + chunk(b"tEXt", b"a\0b") * 20 + PNG[33:],
    ],
    ids=range(12),
)
def test_real_pictures_pass(body: bytes) -> None:
    check_parts(body)


@pytest.mark.parametrize(
    "body",
    [
        PNG[:33] + chunk(b"abCd") * 10_000 + PNG[33:],
        PNG[:33] + chunk(b"tEXt", b"a\0b") * 10_000 + PNG[33:],
        PNG[:33] + chunk(b"IDAT") * 10_000 + PNG[33:],
        PNG[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1000))) * 9 + PNG[33:],
        PNG[:33] + chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1000))) * 9 + PNG[33:],
        JPEG[:2] + b"\xff\xe1\x00\x02" * 10_000 + JPEG[2:],
        JPEG[:2] + b"\xff" * 10_000 + JPEG[2:],
        JPEG[:2] + b"x" * 10_000 + JPEG[2:],
        JPEG[:2] + b"\xff\xd8" * 10_000 + JPEG[2:],
        JPEG[:2] + b"\xff\x00" * 10_000 + JPEG[2:],
        GIF[:GIF_BLOCKS] + b"!\xfe" + b"\x01a" * 10_000 + b"\0" + GIF[GIF_BLOCKS:],
        GIF[:GIF_BLOCKS] + b"!\xfe\0" * 10_000 + GIF[GIF_BLOCKS:],
        GIF[:GIF_BLOCKS] + b"x" * 10_000 + GIF[GIF_BLOCKS:],
    ],
    ids=[
        "chunks",
        "texts",
        "data",
        "deflated",
        "profiles",
        "segments",
        "fill",
        "junk",
        "starts",
        "zeros",
        "one long GIF comment",
        "GIF comments",
        "GIF junk",
    ],
)
def test_a_file_of_many_parts_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidArgument, match="parts; save it again"):
        check_parts(body)


def test_a_jpeg_of_many_scans_is_refused() -> None:
    progressive = saved("JPEG", progressive=True)
    start = progressive.index(b"\xff\xda")
    with pytest.raises(InvalidArgument, match="100 scans"):
        check_parts(progressive[:start] + progressive[start:] * 20)


@pytest.mark.parametrize("before", range(4))
def test_each_scan_is_counted_once_in_a_long_file(before: int) -> None:
    scan = b"\xff\xda"
    # The file is searched in stretches of 256 KiB: the last scan is around the end of one.
    start = b"\xff\xd8" + scan * 99
    end = start.ljust(256 * 1024 - before, b"\0") + scan
    check_parts(end)
    with pytest.raises(InvalidArgument, match="100 scans"):
        check_parts(end + b"\0" + scan)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    b"\xff",
                    b"x",
                    b"\xff\xe1\0\2",
                    b"\xff\xd8",
                    b"\xff\0",
                    b"\xff\xdb\0\3\1",
                    b"\xff\xf0",
                    b"\xff\xc8",
                    b"\xff\xfe\0\4ab",
                    b"\xff\x01",
                    b"\xff\xe0\0\0",
                ]
            ),
            st.integers(1, 300),
        ),
        max_size=8,
    )
)
def test_pillow_opens_what_passes_in_few_steps(parts: list[tuple[bytes, int]]) -> None:
    body = JPEG[:2] + b"".join(part * count for part, count in parts) + JPEG[2:]
    try:
        check_parts(body)
    except InvalidArgument:
        return
    # About 12 calls per segment, and those of a plain file.
    assert steps_of_pillow(body) < 1000 + 40 * (64 + len(body) // 1024)


@pytest.mark.parametrize("kind", ["WEBP", "BMP", "GIF"])
def test_files_of_other_formats_pass(kind: str) -> None:
    file = io.BytesIO()
    Image.effect_noise((200, 200), 90).save(file, kind)
    check_parts(file.getvalue())


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"!\xfe\x01a\0", b"!\xff\x02ab\0", b"!\x01\0", b"x", b"!\xfe\xff"]),
            st.integers(1, 300),
        ),
        max_size=8,
    )
)
def test_pillow_opens_a_gif_that_passes_in_few_steps(parts: list[tuple[bytes, int]]) -> None:
    blocks = b"".join(part * count for part, count in parts)
    body = GIF[:GIF_BLOCKS] + blocks + GIF[GIF_BLOCKS:]
    try:
        check_parts(body)
    except InvalidArgument:
        return
    assert steps_of_pillow(body) < 1000 + 40 * (64 + len(body) // 1024)
