"""The client's side of HTTP/2 for tests on bytes: what a client sends, and what it gets."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import hpack

from service.core.budget import Budget
from service.grpc.answering import Pipelined, Rpc, Unary
from service.grpc.http2 import frames
from service.grpc.http2.connection import Connection
from service.grpc.http2.events import Event
from service.grpc.http2.limits import Limits
from service.grpc.http2.pool import Pool
from service.grpc.http2.stream import Stream

UNARY = "/test.Service/Unary"
STREAMING = "/test.Service/Streaming"
START = frames.PREFACE + frames.frame(frames.SETTINGS, 0, 0)
LIMITS = Limits(max_message=1000, max_streams=8, body_timeout=10.0)


async def _unused(*_: object) -> None:
    raise AssertionError("tests on bytes run no handler")


RPCS = {
    UNARY: Rpc(Unary("unary", _unused), None, None),
    STREAMING: Rpc(Pipelined("streaming", _unused, lambda request, error: None), None, None),
}


def budget(limit: int = 1 << 25) -> Budget:
    """A budget whose time stands still."""
    return Budget(limit, clock=lambda: 0.0)


def unopened(limits: Limits = LIMITS, pool: Pool | None = None) -> Connection:
    """A connection that has received nothing."""
    if pool is None:
        pool = Pool(max_connections=8, max_calls=10_000, silence=1.0, budget=budget())
    return Connection(RPCS, limits, lambda asked: asked or "chosen", pool)


def connection(limits: Limits = LIMITS, pool: Pool | None = None) -> Connection:
    """A connection that has received the client's preface and sent its own."""
    opened = unopened(limits, pool)
    assert opened.receive(START, 0.0) == []
    opened.data_to_send()
    return opened


def literal_block(fields: Sequence[tuple[str, str]]) -> bytes:
    """A header block that leaves HPACK's table as it is."""
    return bytes(hpack.Encoder().encode([(name, value, True) for name, value in fields]))


def block(path: str = UNARY, more: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """A header block of a call."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "test",
        "content-type": "application/grpc",
        **more,
    }
    return literal_block(list(fields.items()))


STREAM = block(STREAMING)


def message(content: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(content)) + content


def headers(stream_id: int, content: bytes | None = None, flags: int = 0) -> bytes:
    """A HEADERS frame; of a unary call without further headers if there is no `content`."""
    content = block() if content is None else content
    return frames.frame(frames.HEADERS, frames.END_HEADERS | flags, stream_id, content)


def data(stream_id: int, content: bytes, end: bool = False) -> bytes:
    return frames.frame(frames.DATA, frames.END_STREAM if end else 0, stream_id, content)


def call(stream_id: int, content: bytes, header_block: bytes | None = None) -> bytes:
    """A whole call with one message."""
    return headers(stream_id, header_block) + data(stream_id, message(content), end=True)


def chunks(content: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    """Cut `content` at the given positions, wherever they lie modulo its length."""
    positions = [0, *sorted(cut % (len(content) + 1) for cut in cuts), len(content)]
    for start, end in pairwise(positions):
        yield content[start:end]


def sent(output: bytes) -> list[tuple[int, int, int, bytes]]:
    """The frames in the server's bytes, as (type, flags, stream id, payload)."""
    reader = frames.FrameReader(1 << 24, 1 << 24)
    return list(reader.frames(frames.PREFACE + output))


def opened_stream(opened: Connection, stream_id: int = 1) -> Stream:
    """The stream of a streaming call that is just opened."""
    (event,) = opened.receive(headers(stream_id, STREAM), 0.0)
    return event.stream


def kinds(output: bytes, stream_id: int) -> list[int]:
    return [kind for kind, _, number, _ in sent(output) if number == stream_id]


def goaway(output: bytes) -> tuple[int, str] | None:
    """Code and reason of the GOAWAY frame in the server's bytes."""
    for kind, _, _, payload in sent(output):
        if kind == frames.GOAWAY:
            return struct.unpack_from(">I", payload, 4)[0], payload[8:].decode()
    return None


def closing(opened: Connection) -> tuple[int, str] | None:
    """The GOAWAY of a connection that is closed, else None."""
    return goaway(opened.data_to_send()) if opened.closed else None


def answer(output: bytes, stream_id: int) -> tuple[dict[str, str], bytes]:
    """Headers and trailers of a stream in one, and its data."""
    fields: dict[str, str] = {}
    content = b""
    decoder = hpack.Decoder()
    for kind, _, number, payload in sent(output):
        if kind == frames.HEADERS:
            decoded = dict(decoder.decode(payload))
            fields |= decoded if number == stream_id else {}
        elif kind == frames.DATA and number == stream_id:
            content += payload
    return fields, content


def described(events: Sequence[Event]) -> list[tuple[Any, ...]]:
    """The events in a form that can be compared, with ids in place of streams."""
    return [(type(event).__name__, event.stream.id, *event[1:]) for event in events]
