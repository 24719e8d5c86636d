"""One HTTP/2 connection: frames of a client, cut anywhere, with answers in between.

Input is a recipe for frames, mostly legal ones; a frame may also be any bytes. The bytes are cut in
two ways, which must have the same effect. A client that follows RFC 9113 reads what is sent back:
it checks every frame, every window and every state.
"""

from __future__ import annotations

import struct
from typing import Any

import hpack

from service.core.budget import Budget
from service.core.errors import InvalidArgument
from service.grpc.answering import Pipelined, Rpc, Unary
from service.grpc.http2 import frames
from service.grpc.http2.connection import CONNECTION_WINDOW, Connection
from service.grpc.http2.events import CallCancelled, CallStarted, MessageReceived, MessagesEnded
from service.grpc.http2.headers import OK, Status
from service.grpc.http2.limits import Limits
from service.grpc.http2.pool import Pool
from service.grpc.http2.stream import STREAM_WINDOW
from tests.fuzz.fields import Fields

CI_RUNS = 2_000
_LIMITS = Limits(max_message=500, max_streams=4, body_timeout=10.0)
_FIELDS = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/s/Unary",
    "content-type": "application/grpc",
}


async def _unused(*_: object) -> None: ...


_RPCS = {
    "/s/Unary": Rpc(Unary("unary", _unused), None, None),
    "/s/Stream": Rpc(Pipelined("stream", _unused, lambda request, error: None), None, None),
}


def _block(**changed: str) -> bytes:
    fields = _FIELDS | {name.replace("_", "-"): value for name, value in changed.items()}
    return bytes(hpack.Encoder().encode([(name, value, True) for name, value in fields.items()]))


_UNARY = _block()
_STREAM = bytes(
    hpack.Encoder().encode(
        [(n, "/s/Stream" if n == ":path" else v, True) for n, v in _FIELDS.items()]
    )
)
_BLOCKS = (
    *(_UNARY, _STREAM, _block(grpc_timeout="1S"), _block(content_length="7")),
    *(_block(grpc_timeout="x"), _block(content_type="text/html"), _block(te="gzip")),
    *(
        b"\x40\x01a\x01b" + _UNARY,
        b"\xbe",
        b"\x20",
        b"",
        b"\xff\xff\xff\xff\xff",
        _block(a="v" * 300),
    ),
)
_MESSAGES = tuple(
    struct.pack(">BI", flag, size) + content
    for flag, size, content in (
        *((0, 2, b"ab"), (0, 0, b""), (1, 2, b"ab"), (0, 3, b"ab"), (0, 1, b"ab")),
        *((0, 2**32 - 1, b""), (0, 500, bytes(500)), (0, 501, bytes(501))),
    )
)
_WORDS = (1, 0, 100, 16_384, 65_535, 2**24 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
SEEDS = [
    # A unary call; a stream; windows of zero; resets; settings; any bytes.
    bytes([0, 0, 1, 0, 0, 1, 1, 1, 0, 0]),
    bytes([7, 1, 0, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1, 1, 3, 0, 0]),
    bytes([3, 4, 3, 1, 0, 0, 1, 0, 0, 1, 1, 1, 0, 8, 0, 2, 8, 1, 2]),
    bytes([255, 0, 1, 0, 0, 3, 1, 0, 0, 1, 0, 0, 3, 1, 0, 6, 0, 0, 7, 0, 0]),
    bytes(range(256)),
    bytes(range(255, 0, -1)) * 2,
    bytes([5, 15, 9]) + frames.frame(frames.CONTINUATION, 4, 1, b"\x82"),
    bytes([1, 0, 5, 0, 1, 0, 5, 0, 3, 0, 5, 0, 5, 0, 5, 0, 7, 0, 5, 0, 9]) * 3,
]


def check(data: bytes) -> None:
    fields = Fields(data)
    options = fields.byte()
    content, ends = _content(fields)
    if options % 2:
        _run(content, ends, answers=1 + options // 8)
        return
    step = (1 if len(content) < 100 else 8, 7, 9, 10, 33, 64, 1000)[options // 2 % 7]
    cuts = [*range(step, len(content), step), len(content)]
    assert _run(content, cuts, answers=0) == _run(content, [len(content)], answers=0)


def _content(fields: Fields) -> tuple[bytes, list[int]]:
    """What the client sends, and where its writes end."""
    first = fields.byte()
    output = frames.PREFACE if first < 250 else fields.take(24)
    output += (
        frames.frame(frames.SETTINGS, 0, 0, fields.of((b"", *_settings()))) if first < 240 else b""
    )
    next_id, ends = 1, [len(output)]
    while fields.left > 0:
        kind, odd = fields.byte(), fields.byte()
        stream_id = (
            next_id
            if kind % 16 == 0 and odd < 250
            else (odd % 8 * 2 + 1 if odd < 240 else odd - 240)
        )
        end = frames.END_STREAM if odd & 16 else 0
        match kind % 16:
            case 0 | 9:
                block = fields.of(_BLOCKS)
                flags = (frames.END_HEADERS if odd != 77 else 0) | (end if kind & 32 else 0)
                flags |= (frames.PRIORITISED if odd % 11 == 1 else 0) | (
                    frames.PADDED if odd % 13 == 1 else 0
                )
                block = (
                    (bytes([odd % 5]) if flags & frames.PADDED else b"")
                    + (bytes(5) if flags & frames.PRIORITISED else b"")
                    + block
                    + bytes(odd % 5 if flags & frames.PADDED else 0)
                )
                output += frames.frame(frames.HEADERS, flags, stream_id, block)
                next_id = max(next_id, stream_id + 2 - stream_id % 2)
            case 1 | 2:
                message = fields.of(_MESSAGES)
                cut = fields.byte() % (len(message) + 1) if kind & 32 else len(message)
                output += frames.frame(frames.DATA, end, stream_id, message[:cut])
                if kind & 64:
                    output += frames.frame(frames.DATA, end, stream_id, message[cut:])
            case 3:
                output += frames.reset(stream_id, odd)
            case 4:
                output += frames.frame(frames.SETTINGS, odd // 128, 0, fields.of(_settings()))
            case 5 | 8:
                output += frames.window_update(
                    stream_id if odd % 3 else 0, fields.of(_WORDS) % 2**32
                )
            case 6:
                output += frames.frame(frames.PING, odd // 250, 0, bytes(8))
            case 7:
                output += frames.frame(frames.PRIORITY, 0, stream_id, bytes(5))
            case 10:
                output += frames.frame(
                    frames.CONTINUATION, odd % 2 * 4, stream_id, fields.of(_BLOCKS)
                )
            case 11:
                output += frames.frame(frames.GOAWAY, 0, 0, bytes(8))
            case 12:
                output += frames.frame(
                    fields.byte(), fields.byte(), stream_id, fields.take(odd % 32)
                )
            case 13:
                output += frames.frame(
                    frames.DATA, frames.PADDED | end, stream_id, fields.take(odd % 32)
                )
            case 14:
                ends.append(len(output))  # a pause, in which calls are answered
            case 15:
                output += fields.take(odd % 32)
        if kind >= 128:
            ends.append(len(output))
    return output, [*ends, len(output)]


def _settings() -> tuple[bytes, ...]:
    numbers = (frames.INITIAL_WINDOW_SIZE, frames.MAX_FRAME_SIZE, frames.MAX_HEADER_LIST_SIZE)
    return (
        *(struct.pack(">HI", number, word) for number in numbers for word in _WORDS),
        *(struct.pack(">HI", frames.ENABLE_PUSH, 1), struct.pack(">HI", frames.ENABLE_PUSH, 2)),
        *(struct.pack(">HI", 1, 0), struct.pack(">HIB", 4, 5, 1), struct.pack(">HI", 0x99, 9)),
    )


def _run(content: bytes, ends: list[int], answers: int) -> Any:
    """Feed the bytes up to each end in turn. Returns the events and the bytes that came back."""
    budget = Budget(1 << 25, clock=lambda: 0.0)
    pool = Pool(max_connections=8, max_calls=10_000, silence=1.0, budget=budget)
    connection = Connection(_RPCS, _LIMITS, lambda asked: asked or "chosen", pool)
    client = _Client()
    described, sent, start = [], b"", 0
    streams: dict[int, Any] = {}
    for turn, end in enumerate(ends):
        client.takes_windows(content[start:end])
        was_closed = connection.closed
        events = connection.receive(content[start:end], turn * 0.01)
        assert not (was_closed and events)
        start = end
        for event in events:
            described.append((type(event).__name__, event.stream.id, *event[1:]))
            if isinstance(event, CallStarted | MessageReceived):
                streams[event.stream.id] = event.stream
            if isinstance(event, CallCancelled):
                streams.pop(event.stream.id, None)
            if answers and isinstance(event, MessageReceived):
                _answer(connection, event, answers + turn)
            elif answers and isinstance(event, MessagesEnded):
                connection.finish(event.stream, OK)
        if answers % 8 == 7 and streams:
            connection.expire(streams.popitem()[1], Status("DEADLINE_EXCEEDED", "Late."))
        if answers % 16 == 15 and turn == len(ends) - 1:
            connection.stop()
        _check_state(connection)
        output = connection.data_to_send()
        client.receive(output)
        sent += output
    if answers:
        for event in connection.tick(1000.0):
            assert isinstance(event, CallCancelled)
        _check_state(connection)
        client.receive(connection.data_to_send())
    is_closed = connection.closed
    connection.lose()
    # Whatever happened, nothing stays counted.
    assert (budget.used, pool.open_calls) == (0, 0)
    return described, sent, is_closed


def _answer(connection: Connection, event: MessageReceived, choice: int) -> None:
    stream = event.stream
    content = bytes((0, 10, 20_000, 70_000)[choice % 4])
    if not stream.headers.is_unary:
        connection.message_read(stream)
        connection.send(stream, content)
        connection.message_answered(stream)
    elif choice % 3:
        connection.finish(stream, OK, content)
    else:
        error = InvalidArgument("x" * (choice % 5 * 300))
        connection.finish(stream, Status(error.grpc_code, error.message))


def _check_state(connection: Any) -> None:
    """What must hold between any two calls, of the parts that no peer can see."""
    assert 0 <= connection._receive_window <= CONNECTION_WINDOW
    assert 0 <= connection._send_window <= frames.LARGEST_WINDOW or connection.closed
    assert len(connection._streams) <= _LIMITS.max_streams
    assert len(connection._unfinished) <= 1024
    for number, stream in connection._streams.items():
        assert stream.id == number
        assert 0 <= stream._receive_window <= STREAM_WINDOW
        assert stream.send_window <= frames.LARGEST_WINDOW
        assert len(stream._buffer) <= 2 * STREAM_WINDOW
        # What waits for a window is known to wait.
        assert not stream.output or number in connection._waiting
    assert connection._waiting.keys() <= connection._streams.keys()


class _Client:
    """Reads what the server sends, as RFC 9113 lets a client insist on it.

    It learns its own windows and settings from the bytes that it sent; they may be malformed, so it
    only bounds what the server may send from above.
    """

    def __init__(self) -> None:
        self._reader = frames.FrameReader(1 << 24, 1 << 24)
        list(self._reader.frames(frames.PREFACE))
        self._decoder = hpack.Decoder(max_header_list_size=1 << 24)
        self._sent = b""
        self._data = 0
        self._ended: set[int] = set()
        self._reset: set[int] = set()
        self._opened: set[int] = set()
        self._gone = False

    def takes_windows(self, content: bytes) -> None:
        self._sent += content

    def receive(self, output: bytes) -> None:
        assert not (self._gone and output), "bytes after the GOAWAY of an error"
        for kind, flags, stream_id, payload in self._reader.frames(output):
            assert not self._gone
            # The client may raise this limit to 2^24-1, and never lower it.
            if not self._raised_frames():
                assert len(payload) <= frames.DEFAULT_FRAME or kind == frames.HEADERS
            if kind in (frames.HEADERS, frames.DATA):
                assert stream_id % 2 == 1
                assert stream_id not in self._ended | self._reset
                if kind == frames.DATA:
                    assert stream_id in self._opened
                    self._data += len(payload)
                else:
                    names = [name for name, _ in self._decoder.decode(payload)]
                    assert (":status" in names) == (stream_id not in self._opened)
                    self._opened.add(stream_id)
                if flags & frames.END_STREAM:
                    self._ended.add(stream_id)
            elif kind == frames.RST_STREAM:
                self._reset.add(stream_id)
            elif kind == frames.GOAWAY:
                self._gone = payload[4:8] != bytes(4)
            elif kind == frames.WINDOW_UPDATE:
                assert int.from_bytes(payload) > 0
            else:
                assert kind in (frames.SETTINGS, frames.PING)
        assert self._data <= frames.DEFAULT_WINDOW + self._granted()

    def _raised_frames(self) -> bool:
        return struct.pack(">H", frames.MAX_FRAME_SIZE) in self._sent

    def _granted(self) -> int:
        """At least what the WINDOW_UPDATE frames of connection and streams allow together."""
        granted, at = 0, 0
        update = b"\0\0\4\x08"
        while (at := self._sent.find(update, at)) >= 0:
            granted += int.from_bytes(self._sent[at + 9 : at + 13]) & (2**31 - 1)
            at += 1
        return granted
