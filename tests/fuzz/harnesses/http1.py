"""HTTP/1 connections: requests one after the other, whole and in pieces.

The first byte is the size of the pieces. Whatever is taken for a request is the same in pieces, and
the same for h11, which is another implementation of RFC 9112.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, NamedTuple

import h11

from service.core.budget import Budget
from service.http.exchange import Ended
from service.http.http1.connection import Http1Connection, Request, RequestScope
from service.http.http1.heads import Heads
from tests.fuzz.transport import Transport

_POST = b"POST /predict?a=b HTTP/1.1\r\nHost: h\r\n"
_CHUNKED = _POST + b"Transfer-Encoding: chunked\r\n\r\n"
SEEDS = [
    b"\0" + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 3,
    b"\1" + b"\r\nGET http://a/%20b HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /",
    b"\5" + _POST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\nabc" + _POST + b"\r\n",
    b"\7" + _CHUNKED + b"3;x=y\r\nabc\r\n1\r\nd\r\n0\r\nTrailer: a\r\n\r\n" + _POST + b"\r\n",
    b"\3" + _POST + b"Connection: close\r\nContent-Length: 100\r\n\r\nabc",
    b"\2" + _CHUNKED + b"3\r\nabcX",
    b"\0\0" + _POST + b"\r\n",
    b"\3" + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 9 + b"GET \r\n",  # all of them are answered
]
TOKENS = [
    *(b"GET ", b"POST ", b"OPTIONS * ", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"\r\n\r\n", b"\r\n"),
    *(b"Host: a\r\n", b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"Connection: "),
    *(b"close", b"keep-alive", b"Expect: 100-continue\r\n", b"0\r\n\r\n", b"http://", b"%ff"),
    *(b"\r", b"\n", b"\t", b" :", b"1_0", b"+1", b"0x", b"\xff", b"chunked, gzip", b"007"),
]


class _Seen(NamedTuple):
    """One request."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes | None  # None for one that is cut short


_LOOP = asyncio.new_event_loop()


def check(data: bytes) -> None:
    size, content = (data[0], data[1:]) if data else (0, b"")
    whole = _LOOP.run_until_complete(_ours(content, len(content) or 1))
    parts = _LOOP.run_until_complete(_ours(content, size or len(content) or 1))
    assert whole == parts, (whole, parts)
    seen, _ = whole
    if not content.isascii():  # h11 takes no such target, as curl sends it for a path with an é
        return
    others = _by_h11(content)
    assert seen[:1] == [] or others, f"h11 takes nothing here for a request: {seen}"
    for ours, other in zip(seen, others, strict=False):
        if None in (ours.body, other.body):
            break
        assert ours == other, (ours, other)


async def _ours(content: bytes, size: int) -> tuple[list[_Seen], list[bytes]]:
    """The requests, and the first lines of what was answered."""
    seen: list[_Seen] = []

    async def front(scope: RequestScope, request: Request) -> None:
        body: bytes | None = None
        with contextlib.suppress(Ended):
            body = await request()
        # h11 gives transfer codings in lower case.
        pairs = sorted(
            (name, value.lower() if name == "transfer-encoding" else value)
            for name, value in scope.headers._pairs
        )
        seen.append(_Seen(scope.method, scope.query_string, pairs, body))
        request.response_bytes(200 if body is not None else 400, [], b"")

    connections: set[Http1Connection] = set()
    buffer = memoryview(bytearray(1))
    connection = Http1Connection(
        front, Heads(), buffer, connections, lambda: None, Budget(1 << 25), is_secure=False
    )
    transport = Transport()
    connection.connection_made(transport)
    for position in range(0, len(content), size):
        connection.data_received(content[position : position + size])
        await _settle(connection)
    if not connection.is_closing and not connection.eof_received():
        transport.close()
    await _settle(connection)
    connection.connection_lost(None)
    await asyncio.sleep(0)
    lines = [line for line in transport.output.split(b"\r\n") if line.startswith(b"HTTP/1.")]
    return seen, [line[9:12] for line in lines if not line.endswith(b"100 Continue")]


async def _settle(connection: Http1Connection) -> None:
    """Let the loop run until nothing happens any longer: no request, and as much is unread."""
    quiet = unread = 0
    while quiet < 4:
        await asyncio.sleep(0)
        is_busy = connection.request is not None and connection._waiter is None
        quiet = 0 if is_busy or len(connection.unread) != unread else quiet + 1
        unread = len(connection.unread)


def _by_h11(content: bytes) -> list[_Seen]:
    other = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    other.receive_data(content.lstrip(b"\r\n"))  # it knows no empty line before a request
    seen: list[_Seen] = []
    try:
        while True:
            event: Any = other.next_event()
            if isinstance(event, h11.Request):
                pairs = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in event.headers]
                query = event.target.decode("latin-1").partition("?")[2]
                method = event.method.decode("latin-1")
                seen.append(_Seen(method, query, sorted(pairs), None))
                body = b""
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                seen[-1] = seen[-1]._replace(body=body)
                other.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                other.send(h11.EndOfMessage())
                other.start_next_cycle()
            else:
                return seen
    except (h11.RemoteProtocolError, h11.LocalProtocolError):
        return seen
