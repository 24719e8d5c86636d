from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.http1.chunks import ChunkedBody
from service.http.http1.heads import Malformed


def chunked(pieces: list[bytes], trailers: bytes = b"") -> bytes:
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece]
    return b"".join([*chunks, b"0\r\n", trailers, b"\r\n"])


def read(reads: list[bytes]) -> tuple[bytes, bytes, bool]:
    """The content, what follows the body, and whether its end has come."""
    body, unread, content = ChunkedBody(), b"", b""
    for each in reads:
        unread += each
        while True:
            piece, unread = body.take(unread)
            content += piece
            if not piece or not unread:
                break
    return content, unread, body.is_complete


@given(
    st.lists(st.binary(max_size=40), max_size=10),
    st.sampled_from([b"", b"a: b\r\n", b"a:\r\nb: c\r\n"]),
    st.binary(max_size=20),
    st.lists(st.integers(1, 30), max_size=40),
)
def test_a_body_is_the_same_however_it_arrives(
    pieces: list[bytes], trailers: bytes, following: bytes, sizes: list[int]
) -> None:
    content = chunked(pieces, trailers) + following
    reads, position = [], 0
    for size in sizes:
        reads.append(content[position : position + size])
        position += size
    reads.append(content[position:])
    assert read(reads) == (b"".join(pieces), following, True)


def test_thousands_of_chunks_are_taken_in_several_goes() -> None:
    content = chunked([b"a"] * 5000)
    body = ChunkedBody()
    piece, rest = body.take(content)
    assert 0 < len(piece) < 1000
    assert rest
    assert read([content]) == (b"a" * 5000, b"", True)


@pytest.mark.parametrize(
    "line", [b"3;a=b", b"3 ;a", b'3;a="b c"', b"03", b"000000000000003", b"3 "]
)
def test_extensions_and_zeros_are_accepted(line: bytes) -> None:
    assert read([line + b"\r\nabc\r\n0\r\n\r\n"]) == (b"abc", b"", True)


@pytest.mark.parametrize(
    "content",
    [
        b"zz\r\n",
        b"-1\r\n",
        b"+3\r\nabc\r\n",
        b"0x3\r\nabc\r\n",
        b"\r\n",
        b" 3\r\nabc\r\n",
        b"3\nabc\n",
        b"3\r\nabcd\r\n",
        b"3\r\nabc\n",
        b"3\r\nabc\rx",
        b"f" * 16 + b"\r\n",
        b"3;" + b"a" * 2000,
        b"3;a\0\r\nabc\r\n",
        b"3;a\nb\r\nabc\r\n",
        b"0\r\na\r\n\r\n",
        b"0\r\na : b\r\n\r\n",
        b"0\r\n a: b\r\n\r\n",
        b"0\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
    ],
)
def test_what_is_malformed_is_refused(content: bytes) -> None:
    with pytest.raises(Malformed):
        read([content])
    with pytest.raises(Malformed):
        read([content[position : position + 1] for position in range(len(content))])
