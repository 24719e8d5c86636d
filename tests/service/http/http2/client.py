"""A client's end of an HTTP/2 connection, by h2, without a socket."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, cast

import h2.config
import h2.connection
import h2.events
from h2.settings import SettingCodes
from h2.settings import Settings as H2Settings
from hyperframe.frame import Frame, GoAwayFrame

from service.core.budget import Budget
from service.core.turns import Turns
from service.http.http1.connection import Http1Connection
from service.http.http1.heads import Heads
from service.http.http2.connection import Http2Connection
from service.http.http2.streams import RequestScope, Stream
from service.settings import Settings
from tests.service.http.transport import Transport, echo, settle

HEADERS = [(":method", "GET"), (":scheme", "http"), (":path", "/a"), (":authority", "h")]
POST = [(":method", "POST"), *HEADERS[1:]]
BODY_TIMEOUT = 30.0
Front = Callable[[RequestScope, Stream], Awaitable[None]]


class Client:
    """A client's end of a connection.

    It reads all answers, or else opens no window itself; `window` is that of each stream.
    """

    def __init__(
        self, front: Front = echo, *, window: int | None = None, turns: Turns | None = None
    ) -> None:
        self._reads = window is None
        turns = turns or Turns()
        window = 1 << 20 if window is None else window

        async def call(scope: RequestScope, stream: Stream) -> None:
            await front(scope, stream)

        self.connections: set[Any] = set()
        self.lost = 0
        self.settings = Settings()
        self.budget = Budget(1 << 25)
        buffer = memoryview(bytearray(64 * 1024))

        def speak_http2(before: Http1Connection, transport: Any, received: bytes) -> None:
            successor = Http2Connection(
                call, buffer, self.connections, self._lose, before, turns, body_timeout=BODY_TIMEOUT
            )
            transport.set_protocol(successor)
            successor.connection_made(transport)
            successor.data_received(received)

        first = Http1Connection(
            call,
            Heads(),
            buffer,
            self.connections,
            self._lose,
            self.budget,
            is_secure=False,
            speak_http2=speak_http2,
        )
        self.transport = Transport()
        self.transport.protocol = first
        first.connection_made(self.transport)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="latin-1"))
        self.h2.local_settings = H2Settings(
            client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self.h2.initiate_connection()
        self._position = 0  # in the output
        self.answers: dict[int, tuple[dict[str, str], bytes]] = {}
        self.ended: list[int] = []
        self.resets: dict[int, int] = {}
        self.events: Counter[str] = Counter()

    @property
    def server(self) -> Http2Connection:
        protocol = self.transport.protocol
        assert isinstance(protocol, Http2Connection)
        return protocol

    def _lose(self) -> None:
        self.lost += 1

    async def write(self, content: bytes, size: int = 0) -> None:
        """Send bytes, `size` at a time, as far as they are read; the loop runs in between."""
        size = size or 65_536
        for position in range(0, len(content), size):
            piece = content[position : position + size]
            for _ in range(1000):
                if not self.transport.is_paused:
                    break
                await asyncio.sleep(0)
            assert not self.transport.is_paused, "the server reads no more"
            protocol = self.transport.protocol
            protocol.get_buffer(-1)[: len(piece)] = piece
            protocol.buffer_updated(len(piece))
            await asyncio.sleep(0)

    async def flush(self, size: int = 0) -> None:
        """Send what h2 has, take the answers, and confirm what they ask."""
        while content := self.h2.data_to_send():
            await self.write(content, size)
            await settle()
            self.receive()

    def receive(self) -> None:
        """Take what the server has sent."""
        content = self.transport.output[self._position :]
        self._position += len(content)
        for event in self.h2.receive_data(without_goaway(content)):
            self.events[type(event).__name__] += 1
            match event:
                case h2.events.ResponseReceived():
                    assert event.headers is not None
                    self.answers[event.stream_id] = dict(cast("Any", event.headers)), b""
                case h2.events.DataReceived():
                    headers, body = self.answers[event.stream_id]
                    self.answers[event.stream_id] = headers, body + event.data
                    if self._reads:
                        size = event.flow_controlled_length
                        self.h2.acknowledge_received_data(size, event.stream_id)
                case h2.events.StreamEnded():
                    self.ended.append(event.stream_id)
                case h2.events.StreamReset():
                    self.resets[event.stream_id] = int(event.error_code)

    async def ask(
        self, headers: list[tuple[str, str]] = HEADERS, body: bytes | None = None, size: int = 0
    ) -> int:
        """Send a request, with what fits into the windows of its body; return its stream."""
        stream_id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, headers, end_stream=body is None)
        while body is not None:
            room = min(self.h2.local_flow_control_window(stream_id), 16_384)
            self.h2.send_data(stream_id, body[:room], end_stream=len(body) <= room)
            body = body[room:] or None
            if body:
                await self.flush(size)
        await self.flush(size)
        return stream_id

    def frames(self, kind: type[Any]) -> list[Any]:
        """All frames of a kind that the server has sent."""
        return [frame for frame in frames_of(self.transport.output) if isinstance(frame, kind)]

    @property
    def goaways(self) -> list[tuple[int, int]]:
        """The last stream and the code of each GOAWAY."""
        return [(each.last_stream_id, each.error_code) for each in self.frames(GoAwayFrame)]

    async def answer_pings(self) -> None:
        """Confirm the PINGs of the server, as h2 does."""
        self.receive()
        await self.flush()


def frames_of(content: bytes) -> list[Frame]:
    found = []
    while content:
        frame, length = Frame.parse_frame_header(memoryview(content[:9]))
        frame.parse_body(memoryview(content[9 : 9 + length]))
        found.append(frame)
        content = content[9 + length :]
    return found


def without_goaway(content: bytes) -> bytes:
    """h2's client would end everything at a GOAWAY."""
    kept = b""
    while content:
        length = 9 + int.from_bytes(content[:3], "big")
        if content[3] != GoAwayFrame.type:
            kept += content[:length]
        content = content[length:]
    return kept
