from __future__ import annotations

import asyncio
import gzip
import threading
import zlib
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.budget import Budget
from service.core.errors import InvalidArgument, RequestTooLarge, UnsupportedMediaType
from service.http import compression
from service.http.compression import Compression
from service.http.message import HttpRequest, HttpResponse

BODY = b"0123456789" * 100


def request_with(headers: Mapping[str, str], body: bytes = b"") -> HttpRequest:
    return HttpRequest(method="POST", path="/", header=headers.get, body=body)


def decode(encoding: str | None, body: bytes, limit: int = 1000) -> bytes:
    headers = {} if encoding is None else {"content-encoding": encoding}
    request = request_with(headers, body)
    return asyncio.run(Compression(limit, 100, Budget(1 << 20)).decode(request)).body


def encode(accepted: str | None, body: bytes = BODY) -> HttpResponse:
    headers = {} if accepted is None else {"accept-encoding": accepted}
    response = HttpResponse(200, [], body)
    return asyncio.run(Compression(1000, 100, Budget(1000)).encode(request_with(headers), response))


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        (None, BODY),
        ("identity", BODY),
        ("gzip", gzip.compress(BODY)),
        (" GZIP ", gzip.compress(BODY)),
        ("x-gzip", gzip.compress(BODY)),
        ("deflate", zlib.compress(BODY)),
    ],
)
def test_request_body_is_decompressed(encoding: str | None, body: bytes) -> None:
    assert decode(encoding, body) == BODY


@pytest.mark.parametrize(
    ("encoding", "body", "error", "message"),
    [
        ("br", BODY, UnsupportedMediaType, "'br'"),
        ("gzip, gzip", BODY, UnsupportedMediaType, "gzip, gzip"),
        ("gzip", BODY, InvalidArgument, "not valid gzip"),
        ("deflate", zlib.compress(BODY)[:-1], InvalidArgument, "ends too early"),
        ("gzip", gzip.compress(BODY + b"x"), RequestTooLarge, "1000 bytes"),
    ],
)
def test_request_body_that_cannot_be_decompressed_is_rejected(
    encoding: str, body: bytes, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        decode(encoding, body)


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        (None, None),
        ("", None),
        ("br", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("deflate, gzip", "gzip"),
        ("gzip;q=0.5, deflate", "deflate"),
        ("gzip;q=0", None),
        ("*", "gzip"),
        ("*;q=0", None),
        ("gzip;q=0, *", "deflate"),
        ("GZip ; q=0.1", "gzip"),
        ("gzip;q=nan", "gzip"),
    ],
)
def test_response_has_the_encoding_that_the_client_prefers(
    accepted: str | None, encoding: str | None
) -> None:
    response = encode(accepted)
    headers = dict(response.headers)
    assert headers["vary"] == "accept-encoding"
    assert headers.get("content-encoding") == encoding
    if encoding is None:
        assert response.body == BODY
    else:
        assert len(response.body) < len(BODY)
        assert decode(encoding, response.body) == BODY


@given(st.text(max_size=30))
def test_any_accept_encoding_leaves_the_body_readable(accepted: str) -> None:
    response = encode(accepted)
    assert decode(dict(response.headers).get("content-encoding"), response.body) == BODY


def test_only_the_beginning_of_a_long_accept_encoding_is_read() -> None:
    assert encode("x," * 200_000 + "gzip").body == BODY


def test_large_response_is_compressed_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    deflate = compression._deflate

    def recording(body: bytes, encoding: str) -> bytes:
        threads.append(threading.get_ident())
        return deflate(body, encoding)

    monkeypatch.setattr(compression, "_deflate", recording)
    for size in (16 * 1024, 16 * 1024 + 1):
        encode("gzip", bytes(size))
    assert threads[0] == threading.get_ident() != threads[1]


def test_a_request_body_is_decompressed_off_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[int] = []
    inflate = compression.inflate

    def recording(body: bytes, encoding: str, limit: int) -> bytes:
        threads.append(threading.get_ident())
        return inflate(body, encoding, limit)

    monkeypatch.setattr(compression, "inflate", recording)
    assert decode("gzip", gzip.compress(b"")) == b""
    assert len(threads) == 1
    assert threads != [threading.get_ident()]


def test_an_inflated_body_counts_until_its_request_is_answered() -> None:
    budget = Budget(1 << 20)

    async def main() -> None:
        compressed = gzip.compress(bytes(500_000))
        request = request_with({"content-encoding": "gzip"}, compressed)

        async def answer() -> None:
            await Compression(500_000, 100, budget).decode(request)
            assert budget.used == budget.in_flight == 500_000

        await asyncio.create_task(answer())
        await asyncio.sleep(0)
        assert budget.used == 0

    asyncio.run(main())


def test_a_body_is_not_inflated_before_there_is_room_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inflated: list[bytes] = []
    monkeypatch.setattr(compression, "inflate", lambda *a: inflated.append(a[0]) or b"")

    async def main() -> None:
        budget = Budget(1 << 20)
        other = await budget.room(700_000, "http")
        request = request_with({"content-encoding": "gzip"}, bytes(1000))
        decoding = asyncio.ensure_future(Compression(500_000, 100, budget).decode(request))
        await asyncio.sleep(0.01)
        assert not inflated
        other.close()
        await decoding
        assert len(inflated) == 1

    asyncio.run(main())
