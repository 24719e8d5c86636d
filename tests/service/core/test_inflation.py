from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import InvalidArgument, RequestTooLarge
from service.core.inflation import WINDOW_BITS, inflate

ENCODINGS = st.sampled_from(sorted(WINDOW_BITS))


def deflate(content: bytes, encoding: str) -> bytes:
    stream = zlib.compressobj(wbits=WINDOW_BITS[encoding])
    return stream.compress(content) + stream.flush()


@given(st.binary(max_size=2000), ENCODINGS)
def test_content_survives_compression_up_to_the_limit(content: bytes, encoding: str) -> None:
    compressed = deflate(content, encoding)
    assert inflate(compressed, encoding, len(content)) == content
    if content:
        with pytest.raises(RequestTooLarge, match=f"larger than {len(content) - 1} bytes"):
            inflate(compressed, encoding, len(content) - 1)


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5))
def test_members_of_a_gzip_body_are_joined(parts: list[bytes]) -> None:
    body = b"".join(map(gzip.compress, parts))
    assert inflate(body, "gzip", 1000) == b"".join(parts)


def test_limit_holds_for_all_members_together() -> None:
    with pytest.raises(RequestTooLarge):
        inflate(gzip.compress(b"abc") * 2, "gzip", 5)


def test_too_many_members_are_rejected() -> None:
    assert inflate(gzip.compress(b"a") * 64, "gzip", 1000) == b"a" * 64
    with pytest.raises(InvalidArgument, match="64 gzip members"):
        inflate(gzip.compress(b"a") * 65, "gzip", 1000)


@given(st.binary(min_size=1, max_size=100), ENCODINGS, st.data())
def test_truncated_body_is_rejected(content: bytes, encoding: str, data: st.DataObject) -> None:
    compressed = deflate(content, encoding)
    cut = data.draw(st.integers(1, len(compressed) - 1))
    with pytest.raises(InvalidArgument):
        inflate(compressed[:cut], encoding, 1000)


@given(st.binary(min_size=1, max_size=60), ENCODINGS)
def test_arbitrary_bytes_are_inflated_or_rejected(body: bytes, encoding: str) -> None:
    try:
        assert len(inflate(body, encoding, 1000)) <= 1000
    except InvalidArgument:
        return


def test_bomb_is_rejected_before_it_takes_memory() -> None:
    bomb = deflate(bytes(20_000_000), "deflate")
    assert len(bomb) < 20_000
    tracemalloc.start()
    try:
        with pytest.raises(RequestTooLarge):
            inflate(bomb, "deflate", 1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000
