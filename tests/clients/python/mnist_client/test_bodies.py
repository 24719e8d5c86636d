"""Bodies are decoded as they arrive, and bounded."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Iterable

import pytest
from mnist_client import UnexpectedAnswer
from mnist_client.bodies import Body

TEXT = b'{"predictions": []}' * 9
SENT = {
    "": TEXT,
    "identity": TEXT,
    "gzip": gzip.compress(TEXT),
    " X-Gzip ": gzip.compress(TEXT),
    "Deflate": zlib.compress(TEXT),
}


def decoded(chunks: Iterable[bytes], encoding: str, limit: int = 2**20) -> bytes:
    body = Body(encoding, limit)
    for chunk in chunks:
        body.add(chunk)
    return body.content()


@pytest.mark.parametrize("encoding", SENT)
@pytest.mark.parametrize("step", [1, 50, 1000])
def test_a_body_has_up_to_the_limit(encoding: str, step: int) -> None:
    sent = SENT[encoding]
    chunks = [sent[start : start + step] for start in range(0, len(sent), step)]
    assert decoded(chunks, encoding, len(TEXT)) == TEXT
    with pytest.raises(UnexpectedAnswer, match=r"more than 170 bytes \(max_answer_bytes\)"):
        decoded(chunks, encoding, len(TEXT) - 1)
    assert decoded([], encoding) == b""


def test_a_body_that_decompresses_to_more_is_not_decompressed() -> None:
    zeros = zlib.compressobj(wbits=31)
    bomb = b"".join(zeros.compress(bytes(2**20)) for _ in range(64)) + zeros.flush()
    tracemalloc.start()
    try:
        with pytest.raises(UnexpectedAnswer, match="more than 1048576 bytes"):
            decoded([bomb], "gzip")
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("sent", "encoding"),
    [
        (SENT["gzip"][:-9], "gzip"),
        (b"not compressed", "gzip"),
        (TEXT, "br"),
        (SENT["gzip"], "gzip, gzip"),
    ],
)
def test_other_encodings_and_cut_bodies_cannot_be_read(sent: bytes, encoding: str) -> None:
    with pytest.raises(UnexpectedAnswer, match="cannot be read"):
        decoded([sent], encoding)


def test_what_follows_a_compressed_body_is_bounded_too() -> None:
    chunks = [SENT["gzip"], *[bytes(1000)] * 10]
    assert decoded(chunks, "gzip") == TEXT
    with pytest.raises(UnexpectedAnswer, match="max_answer_bytes"):
        decoded(chunks, "gzip", 9_000)
