"""HTTP/2 connections on the HTTP port: frames of a client, whole and in pieces.

Input is a recipe for frames, mostly legal ones; a frame may also be any bytes. A request
that both see whole is the same, and what is sent are frames and headers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import hpack
from hyperframe.frame import Frame, GoAwayFrame, HeadersFrame

from service.core.budget import Budget
from service.core.turns import Turns
from service.http.exchange import Ended
from service.http.http1.connection import PREFACE, Http1Connection
from service.http.http1.heads import Heads
from service.http.http2.connection import Http2Connection
from service.http.http2.streams import RequestScope, Stream
from tests.fuzz.fields import Fields
from tests.fuzz.transport import Transport

CI_RUNS = 5_000
_GET = [(":method", "GET"), (":scheme", "http"), (":path", "/a?b"), (":authority", "h")]
_POST = [(":method", "POST"), *_GET[1:]]
_HEADERS: list[list[tuple[str, str]]] = [
    *(_GET, _POST, [*_POST, ("content-length", "3")], [*_POST, ("expect", "100-continue")]),
    *(_GET[1:], [*_GET, ("x", "1")], [("x", "1")], [(":status", "200")], [*_GET, ("host", "i")]),
    *([(":method", "HEAD"), *_GET[1:]], [*_GET, ("cookie", "a"), ("cookie", "b")]),
]
_STREAMS = (1, 3, 5, 7, 0, 2, 999)
_BODIES = (b"", b"a", b"abc", bytes(300))
_NUMBERS = (0, 1, 3, 100, 65_535, 16_384, 2**31 - 1, 2**32 - 1)
_CUT = b"cut short"
_SIZES = (0, 10, 70_000)  # of answers
SEEDS = [
    b"",
    bytes([0, 0, 0, 0, 5, 0, 0, 0, 5]),
    bytes([7, 0, 0, 1, 4, 1, 0, 2, 1, 2, 0, 0, 3, 0]),
    bytes([3, 3, 0, 1, 8, 4, 0, 3, 6, 0, 1, 7, 0]),
    bytes([0, 6, 1, 5, 0, 8, 0, 9, 0, 3, 5]),
]


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags])
    return head + stream.to_bytes(4, "big") + payload


def _frames(fields: Fields) -> bytes:
    """What a client sends after its preface."""
    encoder = hpack.Encoder()
    output = _frame(4, 0, 0, b"")
    for _ in range(40):
        if fields.left <= 0:
            break
        kind = fields.byte() % 12
        stream = fields.of(_STREAMS)
        flags = fields.of((0, 4, 5, 1, fields.byte()))
        if kind == 1:
            payload = encoder.encode(fields.of(_HEADERS))
        elif kind == 4:
            payload = (1 + fields.byte() % 8).to_bytes(2, "big")
            payload += fields.of(_NUMBERS).to_bytes(4, "big")
            flags, stream = 0, 0
        elif kind == 3:
            payload = fields.of((0, 8, 77)).to_bytes(4, "big")
        elif kind == 8:
            payload = fields.of(_NUMBERS).to_bytes(4, "big")
        elif kind == 6:
            payload, stream = b"leaving?", 0
        elif kind == 2:
            payload = fields.of(_STREAMS).to_bytes(4, "big") + b"\0"
        elif kind == 7:
            payload, stream = bytes(8), 0
        elif kind == 9:
            payload = b"\x82"
        elif kind == 10:
            payload = fields.take(fields.byte() % 20)
            kind = fields.byte()
        else:
            payload = fields.of(_BODIES)
            kind, flags = 0, flags & 1
        output += _frame(kind, flags, stream, payload)
    return output


_LOOP = asyncio.new_event_loop()


def check(data: bytes) -> None:
    fields = Fields(data)
    size = fields.byte()
    answer = bytes(fields.of(_SIZES))
    is_retired = fields.byte() % 4 == 3
    content = PREFACE + _frames(fields)
    whole = _LOOP.run_until_complete(_served(content, len(content), answer, is_retired))
    parts = _LOOP.run_until_complete(_served(content, size or 100, answer, is_retired))
    # A breach, a reset or the end counts from the next read on, so one may see more than the other.
    for stream in whole.keys() & parts.keys():
        if _CUT not in (whole[stream], parts[stream]):
            assert whole[stream] == parts[stream], (whole, parts)


async def _served(content: bytes, size: int, answer: bytes, is_retired: bool) -> dict[int, bytes]:
    """Each request, by its stream."""
    seen: dict[int, bytes] = {}

    async def front(scope: RequestScope, stream: Stream) -> None:
        try:
            body = await stream()
        except Ended:
            seen[stream.id] = _CUT
        else:
            seen[stream.id] = f"{scope.method} {scope.path} ".encode() + body
        stream.response_bytes(200, [("x", "y")], answer)

    connections: set[Any] = set()
    buffer = memoryview(bytearray(1))
    lost: Callable[[], None] = lambda: None  # noqa: E731
    budget = Budget(1 << 25)

    def speak_http2(before: Http1Connection, transport: Any, received: bytes) -> None:
        successor = Http2Connection(
            front, buffer, connections, lost, before, Turns(), body_timeout=30.0
        )
        transport.set_protocol(successor)
        successor.connection_made(transport)
        if is_retired:
            successor.retire()
        successor.data_received(received)

    transport = Transport()
    first = Http1Connection(
        front, Heads(), buffer, connections, lost, budget, is_secure=False, speak_http2=speak_http2
    )
    transport.protocol = first
    first.connection_made(transport)
    for position in range(0, len(content), size):
        transport.protocol.data_received(content[position : position + size])
        await _settle(transport)
    server = transport.protocol
    assert isinstance(server, Http2Connection)
    held = sum(len(each.answer) - each.sent for each in server._streams.values())
    assert server._held == held
    if not server.is_closing and not server.eof_received():
        transport.close()
    await _settle(transport)
    _read(transport.output)
    server.connection_lost(None)
    assert server.request is None
    assert not connections
    if server._lingering is not None:
        server._lingering.cancel()
    await _settle(transport)
    assert not server._tasks
    return seen


async def _settle(transport: Transport) -> None:
    """Let the loop run until nothing happens any longer."""
    for _ in range(6):
        await asyncio.sleep(0)
    while transport.is_paused:
        await asyncio.sleep(0)


def _read(content: bytes) -> None:
    """Read what the server has sent, as a client does."""
    errors = 0
    decoder = hpack.Decoder()
    while content:
        frame, length = Frame.parse_frame_header(memoryview(content[:9]))
        assert len(content) >= 9 + length
        frame.parse_body(memoryview(content[9 : 9 + length]))
        content = content[9 + length :]
        if isinstance(frame, GoAwayFrame):
            errors += frame.error_code != 0
        elif isinstance(frame, HeadersFrame):
            assert "END_HEADERS" in frame.flags
            (name, _), *_ = decoder.decode(frame.data, raw=True)
            assert name == b":status"
    assert errors <= 1
