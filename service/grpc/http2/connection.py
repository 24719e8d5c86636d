"""gRPC's server side on a socket: HTTP/2 as far as gRPC uses it, in one asyncio protocol.

grpcio answers some 3,000 calls a second and core, whatever the model costs: each call crosses its
completion queue and a dozen Cython objects. This speaks the protocol itself, in three frames out
for two in, and is several times faster; docs/decisions/grpc-front.md has the figures. Whatever is
wrong with a connection ends it with GOAWAY and a reason; whatever is wrong with a call ends that
call alone.

Sources: RFC 9113 (HTTP/2); gRPC over HTTP2 (PROTOCOL-HTTP2.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from service.core.errors import (
    DeadlineExceeded,
    InternalError,
    RequestTimeout,
    ServiceError,
    Unimplemented,
)
from service.grpc.answering import Calls, Rpc, Unary
from service.grpc.http2 import frames as wire
from service.grpc.http2.frames import ConnectionFailed, Trailers
from service.grpc.http2.headers import MAX_HEADER_BLOCK, Head, Heads
from service.grpc.http2.stream import Stream

log = logging.getLogger(__name__)

# What a peer may send on all of a connection before it must wait.
_CONNECTION_WINDOW = 4 << 20
_MAX_FRAME = 1 << 18
# How long a peer that was told GOAWAY may take to close its side.
_LINGER_S = 1.0
# Calls that a client may give up before it must have finished as many: more is "rapid reset".
_FREE_RESETS = 200


class Limits(NamedTuple):
    """What connections may take.

    In this order: bytes of a message, connections in all, calls of each at a time, and seconds in
    which a message must have come.
    """

    max_message: int
    max_connections: int
    max_streams: int
    body_timeout: float


class Connection(asyncio.Protocol):
    """One HTTP/2 connection. `inflate(content, encoding)` undoes a message's compression."""

    def __init__(
        self,
        rpcs: Mapping[str, Rpc],
        calls: Calls,
        limits: Limits,
        inflate: Callable[[bytes, str], Awaitable[bytes]],
        connections: set[Connection],
    ) -> None:
        self._calls = calls
        self._limits = limits
        self._inflate = inflate
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._received: bytes | bytearray = b""
        self._prefaced = False
        self._stopping = False  # no more calls
        self._closing = False  # no more frames
        self._streams: dict[int, Stream] = {}
        self._last_stream = 0
        self._continued: tuple[int, int, bytes] | None = None
        self._heads = Heads(rpcs)
        self._receive_window = _CONNECTION_WINDOW
        self._send_window = wire.DEFAULT_WINDOW
        self._peer_window = wire.DEFAULT_WINDOW
        self._peer_frame = wire.DEFAULT_FRAME
        self._resets_left = _FREE_RESETS
        self._out: list[bytes] = []
        self._sweep_timer: asyncio.TimerHandle | None = None

    # What asyncio calls.

    def connection_made(self, transport: Any) -> None:
        """Send our settings, and expect the peer's preface in time."""
        self._transport = transport
        if len(self._connections) >= self._limits.max_connections:
            self._fail(wire.ENHANCE_YOUR_CALM, "too many connections (max_connections)")
            return
        self._connections.add(self)
        self._send(
            wire.settings(
                {
                    wire.MAX_CONCURRENT_STREAMS: self._limits.max_streams,
                    wire.INITIAL_WINDOW_SIZE: wire.STREAM_WINDOW,
                    wire.MAX_FRAME_SIZE: _MAX_FRAME,
                    wire.MAX_HEADER_LIST_SIZE: MAX_HEADER_BLOCK,
                }
            )
            + wire.window_update(0, _CONNECTION_WINDOW - wire.DEFAULT_WINDOW)
        )
        self._sweep_timer = self._loop.call_later(self._limits.body_timeout, self._sweep)

    def connection_lost(self, error: Exception | None) -> None:
        """Give up every call: nobody is there to hear the answers."""
        self._closing = True
        self._connections.discard(self)
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for stream in list(self._streams.values()):
            self._forget(stream)

    def pause_writing(self) -> None:
        """Take no more work from a peer that does not read its answers."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The peer reads again."""
        self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Take the frames that are whole, keep the rest."""
        if self._closing:
            return
        received: bytes | bytearray = data
        if isinstance(self._received, bytearray):
            self._received += data
            received = self._received
        try:
            position = self._read(received)
        except ConnectionFailed as failure:
            self._fail(failure.code, str(failure))
            return
        if isinstance(self._received, bytearray):
            del self._received[:position]
        elif position < len(received):
            self._received = bytearray(received[position:])
        if not self._received:
            self._received = b""

    # Frames in.

    def _read(self, received: bytes | bytearray) -> int:
        """Handle the whole frames; how many bytes they are. Raises ConnectionFailed."""
        position, end = 0, len(received)
        if not self._prefaced:
            start = bytes(received[: len(wire.PREFACE)])
            if not wire.PREFACE.startswith(start):
                raise ConnectionFailed(wire.PROTOCOL_ERROR, "this port speaks gRPC over HTTP/2")
            if len(start) < len(wire.PREFACE):
                return 0
            self._prefaced = True
            position = len(wire.PREFACE)
        while end - position >= wire.FRAME_HEAD.size and not self._closing:
            high, low, kind, flags, number = wire.FRAME_HEAD.unpack_from(received, position)
            size = high << 8 | low
            if size > _MAX_FRAME:
                raise ConnectionFailed(wire.FRAME_SIZE_ERROR, "a frame larger than allowed")
            start_of_payload = position + wire.FRAME_HEAD.size
            if end - start_of_payload < size:
                break
            position = start_of_payload + size
            payload = _copied(received, start_of_payload, position)
            self._frame(kind, flags, number & wire.LARGEST_WINDOW, payload)
        return position if not self._closing else end

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._continued is not None and kind != wire.CONTINUATION:
            raise ConnectionFailed(wire.PROTOCOL_ERROR, "headers interrupted")
        # PRIORITY, GOAWAY and kinds that are not known (RFC 9113, 5.5) need no answer.
        if handle := _HANDLERS.get(kind):
            handle(self, flags, number, payload)

    def _headers(self, flags: int, number: int, payload: bytes) -> None:
        block = wire.unpadded(flags, payload)
        self._header_block(flags, number, block[5:] if flags & wire.PRIORITISED else block)

    def _continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._continued is None or self._continued[0] != number:
            raise ConnectionFailed(wire.PROTOCOL_ERROR, "a continuation of nothing")
        _, first_flags, block = self._continued
        self._continued = None
        self._header_block(first_flags | flags & wire.END_HEADERS, number, block + payload)

    def _ping(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 8 or number:
            raise ConnectionFailed(wire.FRAME_SIZE_ERROR, "a PING of a wrong size")
        if not flags & wire.ACK:
            self._send(wire.frame(wire.PING, wire.ACK, 0, payload))

    def _push_promise(self, flags: int, number: int, payload: bytes) -> None:
        raise ConnectionFailed(wire.PROTOCOL_ERROR, "a client cannot push")

    def _header_block(self, flags: int, number: int, block: bytes) -> None:
        if len(block) > MAX_HEADER_BLOCK:
            raise ConnectionFailed(wire.ENHANCE_YOUR_CALM, "headers larger than allowed")
        if not flags & wire.END_HEADERS:
            self._continued = (number, flags, block)
            return
        head = self._heads.of(block)
        ended = bool(flags & wire.END_STREAM)
        if number in self._streams:  # trailers, which gRPC gives clients no use for
            if not ended:
                raise ConnectionFailed(wire.PROTOCOL_ERROR, "headers in the middle of a stream")
            self._ended(self._streams[number])
        elif number % 2 == 0 or number <= self._last_stream:
            raise ConnectionFailed(wire.PROTOCOL_ERROR, "a stream number used again")
        else:
            self._last_stream = number
            self._open(number, head, ended)

    def _data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self._receive_window -= size
        if self._receive_window < _CONNECTION_WINDOW // 2:
            if self._receive_window < 0:
                raise ConnectionFailed(wire.FLOW_CONTROL_ERROR, "more data than allowed")
            self._send(wire.window_update(0, _CONNECTION_WINDOW - self._receive_window))
            self._receive_window = _CONNECTION_WINDOW
        stream = self._streams.get(number)
        if stream is None or stream.ended:
            if number > self._last_stream or not number:
                raise ConnectionFailed(wire.PROTOCOL_ERROR, "data of no stream")
            return  # of a call that has been answered already
        stream.receive_window -= size
        if stream.receive_window < 0:
            raise ConnectionFailed(wire.FLOW_CONTROL_ERROR, "more data than allowed")
        stream.ungranted += size
        content = wire.unpadded(flags, payload)
        if stream.buffer:
            if not isinstance(stream.buffer, bytearray):
                stream.buffer = bytearray(stream.buffer)
            stream.buffer += content
        else:
            stream.buffer = content
        if stream.contents is not None:
            self._take_messages(stream)
        elif not self._fits(stream):
            return
        if flags & wire.END_STREAM:
            self._ended(stream)
        else:
            self._grant(stream)

    def _fits(self, stream: Stream) -> bool:
        """Whether the message that is coming may come; if not, the call is refused."""
        buffer = stream.buffer
        if len(buffer) < wire.MESSAGE_HEAD.size:
            return True
        _, size = wire.MESSAGE_HEAD.unpack_from(buffer)
        if size <= self._limits.max_message:
            if len(buffer) <= wire.MESSAGE_HEAD.size + size or stream.contents is not None:
                return True
            self._cut_short(stream)  # more than the one message: it could be endless
            return False
        message = f"The message is larger than {self._limits.max_message} bytes."
        self._finish(stream, Trailers("RESOURCE_EXHAUSTED", message, stream.request_id))
        return False

    def _take_messages(self, stream: Stream) -> None:
        """Queue the messages of a streaming call that are whole."""
        assert stream.contents is not None
        position, buffer = 0, stream.buffer
        while len(buffer) - position >= wire.MESSAGE_HEAD.size:
            flag, size = wire.MESSAGE_HEAD.unpack_from(buffer, position)
            start = position + wire.MESSAGE_HEAD.size
            if size > self._limits.max_message:
                stream.buffer = buffer[position:]
                self._fits(stream)
                return
            if len(buffer) - start < size:
                break
            position = start + size
            stream.contents.put_nowait((flag, _copied(buffer, start, position)))
        stream.buffer = buffer[position:]

    def _grant(self, stream: Stream) -> None:
        """Give back window for what has come, unless messages of the stream wait."""
        waiting = stream.contents.qsize() if stream.contents is not None else 0
        if stream.ungranted >= wire.STREAM_WINDOW // 2 and not waiting and not stream.ended:
            self._send(wire.window_update(stream.id, stream.ungranted))
            stream.receive_window += stream.ungranted
            stream.ungranted = 0

    def _window_update(self, flags: int, number: int, payload: bytes) -> None:
        size = wire.read_word(payload)
        if size == 0:
            raise ConnectionFailed(wire.PROTOCOL_ERROR, "a window update of nothing")
        if number:
            if stream := self._streams.get(number):
                stream.send_window += size
                if stream.send_window > wire.LARGEST_WINDOW:
                    raise ConnectionFailed(wire.FLOW_CONTROL_ERROR, "a window too large")
                self._pump(stream)
            return
        self._send_window += size
        if self._send_window > wire.LARGEST_WINDOW:
            raise ConnectionFailed(wire.FLOW_CONTROL_ERROR, "a window too large")
        for stream in [stream for stream in self._streams.values() if stream.pending]:
            self._pump(stream)

    def _settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFailed(wire.PROTOCOL_ERROR, "SETTINGS of a stream")
        if flags & wire.ACK:
            return
        for name, value in wire.read_settings(payload):
            if name == wire.INITIAL_WINDOW_SIZE:
                if value > wire.LARGEST_WINDOW:
                    raise ConnectionFailed(wire.FLOW_CONTROL_ERROR, "a window too large")
                for stream in self._streams.values():
                    stream.send_window += value - self._peer_window
                self._peer_window = value
            elif name == wire.MAX_FRAME_SIZE:
                if not wire.DEFAULT_FRAME <= value < 1 << 24:
                    raise ConnectionFailed(wire.PROTOCOL_ERROR, "a frame size out of range")
                self._peer_frame = value
        self._send(wire.frame(wire.SETTINGS, wire.ACK, 0))
        for stream in [stream for stream in self._streams.values() if stream.pending]:
            self._pump(stream)

    def _reset(self, flags: int, number: int, payload: bytes) -> None:
        wire.read_word(payload)
        if number > self._last_stream or not number:
            raise ConnectionFailed(wire.PROTOCOL_ERROR, "a reset of no stream")
        if stream := self._streams.get(number):
            self._resets_left -= 1
            if self._resets_left < 0:
                raise ConnectionFailed(wire.ENHANCE_YOUR_CALM, "too many calls given up")
            self._forget(stream)

    # Calls.

    def _open(self, number: int, head: Head, ended: bool) -> None:
        if self._stopping or len(self._streams) >= self._limits.max_streams:
            self._send(wire.reset(number, wire.REFUSED_STREAM))
            return
        if head.http_error:
            block = wire.http_error(head.http_error)
            flags = wire.END_HEADERS | wire.END_STREAM
            self._send(wire.frame(wire.HEADERS, flags, number, block))
            return
        request_id = self._calls.request_id(head.request_id)
        stream = Stream(number, head, request_id, self._peer_window)
        stream.began = self._loop.time()
        self._streams[number] = stream
        if head.rpc is None:
            error = Unimplemented(f"There is no method {head.path}.")
            self._finish(stream, Trailers(error.grpc_code, error.message, request_id))
            return
        if head.timeout is not None:
            stream.deadline = stream.began + head.timeout
            stream.timer = self._loop.call_at(stream.deadline, self._expire, stream)
        if not isinstance(head.rpc.method, Unary):
            stream.contents = asyncio.Queue()
            stream.task = self._loop.create_task(self._serve_stream(stream, head.rpc))
        if ended:
            self._ended(stream)

    def _ended(self, stream: Stream) -> None:
        """The peer has sent all that it will."""
        stream.ended = True
        if stream.contents is not None:
            if stream.buffer:
                self._cut_short(stream)
            else:
                stream.contents.put_nowait(None)
            return
        buffer = stream.buffer
        if len(buffer) < wire.MESSAGE_HEAD.size:
            self._cut_short(stream)
            return
        flag, size = wire.MESSAGE_HEAD.unpack_from(buffer)
        content = _copied(buffer, wire.MESSAGE_HEAD.size, len(buffer))
        if size != len(content):
            self._cut_short(stream)
            return
        stream.buffer = b""
        assert stream.head.rpc is not None
        stream.task = self._loop.create_task(
            self._serve_unary(stream, stream.head.rpc, flag, content)
        )

    def _cut_short(self, stream: Stream) -> None:
        message = "The call ended without exactly one whole message."
        if stream.contents is not None:
            message = "The stream ended inside a message."
        self._finish(stream, Trailers("INTERNAL", message, stream.request_id))

    async def _serve_unary(self, stream: Stream, rpc: Rpc, flag: int, content: bytes) -> None:
        request_id = stream.request_id
        try:
            if flag:
                content = await self._uncompressed(stream, flag, content)
            answer = await self._calls.answer(rpc, content, stream.deadline, request_id)
        except ServiceError as error:
            self._finish(stream, Trailers(error.grpc_code, error.message, request_id))
        else:
            self._finish(stream, Trailers("OK", "", request_id), answer)

    async def _serve_stream(self, stream: Stream, rpc: Rpc) -> None:
        end = Trailers("OK", "", stream.request_id)
        try:
            async for content in self._calls.stream(
                rpc,
                self._contents(stream),
                stream.deadline,
                stream.request_id,
                stream.head.ends_with_error,
            ):
                await self._write_message(stream, content)
        except ServiceError as error:
            end = Trailers(error.grpc_code, error.message, stream.request_id)
        except Exception:
            log.exception("Request %s failed.", stream.request_id)
            message = "Internal error; the server's log has it under request id "
            end = Trailers("INTERNAL", message + stream.request_id, stream.request_id)
        self._finish(stream, end)

    async def _contents(self, stream: Stream) -> AsyncIterator[bytes]:
        """The messages of a streaming call as they come."""
        assert stream.contents is not None
        while (item := await stream.contents.get()) is not None:
            flag, content = item
            self._grant(stream)
            yield await self._uncompressed(stream, flag, content) if flag else content

    async def _uncompressed(self, stream: Stream, flag: int, content: bytes) -> bytes:
        encoding = stream.head.encoding
        if flag != 1 or encoding == "identity":
            raise InternalError("A message is flagged as compressed, but grpc-encoding is not set.")
        if encoding not in ("gzip", "deflate"):
            raise Unimplemented(f"grpc-encoding is '{encoding}'; send gzip, deflate or identity.")
        return await self._inflate(content, encoding)

    def _expire(self, stream: Stream) -> None:
        message = "The deadline passed before the answer was there."
        end = Trailers(DeadlineExceeded.grpc_code, message, stream.request_id)
        self._finish(stream, end)

    def _sweep(self) -> None:
        """Give up calls whose message does not come, and connections without a preface."""
        patience = self._limits.body_timeout
        self._sweep_timer = self._loop.call_later(patience / 2, self._sweep)
        if not self._prefaced:
            self._fail(wire.PROTOCOL_ERROR, "no preface came")
            return
        oldest = self._loop.time() - patience
        for stream in list(self._streams.values()):
            if stream.task is None and not stream.ended and stream.began < oldest:
                message = f"The message did not arrive within {patience:g} seconds (body_timeout)."
                end = Trailers(RequestTimeout.grpc_code, message, stream.request_id)
                self._finish(stream, end)

    # Answers out.

    def _finish(self, stream: Stream, end: Trailers, content: bytes | None = None) -> None:
        """End a call, after the one message of a unary call's answer."""
        if stream.id not in self._streams or stream.ending is not None:
            return
        task = stream.task
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        if content is None and not stream.pending:
            flags = wire.END_HEADERS | wire.END_STREAM
            block = wire.trailers(end, alone=not stream.headers_sent)
            self._send(wire.frame(wire.HEADERS, flags, stream.id, block))
            self._close(stream)
            return
        stream.ending = end
        if content is not None:
            self._queue(stream, content)
        self._pump(stream)

    async def _write_message(self, stream: Stream, content: bytes) -> None:
        """Send a message of a streaming call, as fast as the peer takes it."""
        self._queue(stream, content)
        self._pump(stream)
        if stream.pending:
            stream.drained = asyncio.Event()
            await stream.drained.wait()

    def _queue(self, stream: Stream, content: bytes) -> None:
        stream.pending += wire.MESSAGE_HEAD.pack(0, len(content)) + content

    def _pump(self, stream: Stream) -> None:
        """Send what waits, as far as both windows allow, and the trailers after it."""
        parts: list[bytes] = []
        if not stream.headers_sent:
            stream.headers_sent = True
            block = wire.RESPONSE_HEADERS
            parts.append(wire.frame(wire.HEADERS, wire.END_HEADERS, stream.id, block))
        while stream.sent < len(stream.pending):
            left = len(stream.pending) - stream.sent
            room = min(self._send_window, stream.send_window, self._peer_frame, left)
            if room <= 0:
                break
            chunk = stream.pending[stream.sent : stream.sent + room]
            parts.append(wire.frame(wire.DATA, 0, stream.id, chunk))
            self._send_window -= room
            stream.send_window -= room
            stream.sent += room
        if stream.sent == len(stream.pending):
            stream.pending, stream.sent = b"", 0
        if not stream.pending:
            if stream.drained is not None:
                stream.drained.set()
            if stream.ending is not None:
                flags = wire.END_HEADERS | wire.END_STREAM
                block = wire.trailers(stream.ending, alone=False)
                parts.append(wire.frame(wire.HEADERS, flags, stream.id, block))
                self._send(b"".join(parts))
                self._close(stream)
                return
        self._send(b"".join(parts))

    def _close(self, stream: Stream) -> None:
        """Forget a call whose answer has been sent."""
        if not stream.ended:
            # The peer may stop sending: it has its answer (RFC 9113, 8.1).
            self._send(wire.reset(stream.id, wire.NO_ERROR))
        self._resets_left = min(self._resets_left + 1, _FREE_RESETS)
        if stream.timer is not None:
            stream.timer.cancel()
        del self._streams[stream.id]
        self._close_if_done()

    def _forget(self, stream: Stream) -> None:
        """Drop a call that nobody waits for."""
        if stream.task is not None:
            stream.task.cancel()
        if stream.timer is not None:
            stream.timer.cancel()
        del self._streams[stream.id]
        self._close_if_done()

    def _send(self, content: bytes) -> None:
        """Send with whatever else this turn of the loop sends."""
        if not content:
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(content)

    def _flush(self) -> None:
        content = b"".join(self._out)
        self._out.clear()
        if content and not self._transport.is_closing():
            self._transport.write(content)

    # The end of a connection.

    def stop(self) -> None:
        """Take no more calls; close once those in hand are answered."""
        if not self._stopping:
            self._stopping = True
            self._send(wire.goaway(self._last_stream, wire.NO_ERROR, "the server is stopping"))
            self._close_if_done()

    def abort(self) -> None:
        """Close now."""
        self._transport.abort()

    def _close_if_done(self) -> None:
        if self._stopping and not self._streams and not self._closing:
            self._hang_up()

    def _fail(self, code: int, reason: str) -> None:
        """End the connection for what the peer did."""
        self._stopping = True
        self._send(wire.goaway(self._last_stream, code, reason))
        for stream in list(self._streams.values()):
            self._forget(stream)
        if not self._closing:
            self._hang_up()

    def _hang_up(self) -> None:
        """Say no more, and close once the peer has as well: else it may never read the reason.

        A socket that is closed with bytes unread resets the connection, and what was sent is lost.
        """
        self._closing = True
        self._flush()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._loop.call_later(_LINGER_S, self._transport.close)


def _copied(buffer: bytes | bytearray, start: int, end: int) -> bytes:
    """A part of a buffer, copied once; `bytes` of a bytearray's slice would copy twice."""
    if isinstance(buffer, bytes):
        return buffer[start:end]
    with memoryview(buffer) as view:
        return bytes(view[start:end])


_HANDLERS: dict[int, Callable[[Connection, int, int, bytes], None]] = {
    wire.DATA: Connection._data,
    wire.HEADERS: Connection._headers,
    wire.RST_STREAM: Connection._reset,
    wire.SETTINGS: Connection._settings,
    wire.PUSH_PROMISE: Connection._push_promise,
    wire.PING: Connection._ping,
    wire.WINDOW_UPDATE: Connection._window_update,
    wire.CONTINUATION: Connection._continuation,
}
