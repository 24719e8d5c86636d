"""One HTTP/2 connection: an asyncio protocol that hands each of its streams to the front.

Theory of operation. `Http1Connection` sees the preface and hands over its transport. The library
h2 is the state machine: frames, HPACK, flow control. The life of a request:

1. `FrameReader` gives h2 whole frames, a limited number per turn of the event loop.
2. The event `RequestReceived` opens a `Stream`. When all frames of the turn are read, a task runs
   the front with it. Most bodies have arrived by then.
3. Other bodies stay in their stream as they arrive, and the front opens the flow-control window
   again as it reads. So the windows bound what is held: 128 KiB per stream, and twice that per
   connection, which lets other streams continue while one is not read.
4. The front answers with `response_bytes`. Headers and DATA go out as far as the windows and the
   transport allow, and the rest follows when they open.

The end of a connection loses no request: `retire` announces it by a GOAWAY that still allows any
stream, and a PING. When the client answers the PING, it has read the GOAWAY. `hang_up` then sends
the number of the last request, and the connection ends when all are answered (RFC 9113, 6.8).

What costs the client nothing has an allowance: requests that it gives up at once (CVE-2023-44487),
and frames that have to be confirmed. A request that was given up counts until its task ends. While
the client does not read its socket, nothing is read from it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial
from time import time
from typing import Any

import orjson
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    PingAckReceived,
    PingReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from h2.settings import Settings as H2Settings

from service.access.origins import SAFE_HEADERS
from service.core.allowance import Allowance
from service.core.errors import InFlightLimit
from service.core.turns import Turns
from service.http.carrier import Carrier, Front
from service.http.http1.connection import PREFACE, Http1Connection
from service.http.http1.heads import Malformed
from service.http.http1.responses import date
from service.http.http2.frames import MAX_FRAME, MAX_HEADER_BLOCK, Breach, FrameReader, goaway
from service.http.http2.header_blocks import BlockDecoder, BlockEncoder, response_field
from service.http.http2.streams import RequestScope, Stream
from service.observe import metrics
from service.settings import Settings

log = logging.getLogger(__name__)

MAX_STREAMS = 128
STREAM_WINDOW = 128 * 1024
CONNECTION_WINDOW = 2 * STREAM_WINDOW
# Bytes of answers that wait for the client. While there are more, no further request is begun;
# those that have been begun, at most MAX_STREAMS, are answered.
_MOST_HELD = 4 * 1024 * 1024
_WRITE_BYTES = 64 * 1024  # are collected for one write
# Of an answer at a time. A client that opens its window byte by byte could hold it for hours.
_LEAST_PROGRESS = 512
# A request that the client gives up sooner than this costs it nothing. It may give up some at once
# and as many per second, beside one per answer; then it is asked to connect again, and cut off
# after some more, which a proxy may have sent before it reads that.
_QUICK_RESET_S = 0.05
_FREE_RESETS, _LATE_RESETS = 1000, 10_000
_FREE_CONFIRMATIONS = 1000  # of PING and SETTINGS, and empty DATA: as resets
# Requests that are remembered, some 8 KB each, as a client repeats the same few; the largest of
# them in bytes and in headers.
_MAX_KNOWN, _MAX_KNOWN_BYTES, _MAX_KNOWN_HEADERS = 4, 1024, 32
_ALL_STREAMS = 2**31 - 1  # the last stream of a GOAWAY that only announces the end
_KEEPALIVE, _LEAVING = b"keepalv?", b"leaving?"  # the content of our PINGs
_WITHOUT_BODY = (204, 304)
_NO_ROOM = 503
_CONFIGURATION = H2Configuration(
    client_side=False,
    header_encoding=None,
    # `RequestScope` checks a request's, once for equal ones. Ours are in order.
    validate_inbound_headers=False,
    normalize_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)


class _StateMachine(H2Connection):
    # Streams that it remembers as closed. h2 keeps 65,536, which take 13 MB.
    MAX_CLOSED_STREAMS = 2 * MAX_STREAMS


class Http2Connection(Carrier):
    """One connection; `listener.HttpListener` has it among those of HTTP/1."""

    def __init__(
        self,
        front: Front,
        buffer: memoryview,
        connections: set[Any],
        lost: Callable[[], None],
        before: Http1Connection,
        turns: Turns,
        *,
        body_timeout: float,
    ) -> None:
        """`before` has read the preface."""
        super().__init__(front, buffer, connections, lost, before.budget)
        self._turns = turns
        self._body_timeout = body_timeout
        self.scheme, self.client, self.server = before.scheme, before.client, before.server
        self.client_name = before.client_name
        self._h2 = _StateMachine(_CONFIGURATION)
        self._reader = FrameReader()
        self._scopes: dict[tuple[Any, ...], RequestScope] = {}  # of requests so far, by headers
        self._streams: dict[int, Stream] = {}  # that are not answered, or not to the end
        # Those that have just come: without a task yet, answered with an error, and refused.
        self._begun: dict[int, tuple[RequestScope, Stream]] = {}
        self._malformed: dict[int, Malformed] = {}
        self._refused: dict[int, None] = {}
        self._waiting: dict[int, Stream] = {}  # those whose answers wait for the client
        self._unwritten = 0  # bytes of answers that h2 has as frames
        self._tasks: set[asyncio.Task[None]] = set()  # also of requests that were given up
        self._last_stream_id = 0
        self._resets = Allowance(_FREE_RESETS, _LATE_RESETS)
        self._confirmations = Allowance(_FREE_CONFIRMATIONS)
        self._window_has_grown = False
        self._is_working = False  # frames are being read, and output is collected
        self._is_due = False  # another turn is scheduled
        self._is_to_write = False  # a write at the end of this turn is scheduled
        self._is_retiring = False  # the end is announced
        self._is_refusing = False  # the number of the last stream is sent
        self.waits_since = before.waits_since  # later, since the last answer
        self._received_at = now = self.moved_at
        self._pinged_at: float | None = None
        self._unfinished: int | None = None  # what the reader waits for, and since when
        self._unfinished_since = now

    # Called by asyncio, or by `TlsProtocol`.

    def connection_made(self, transport: Any) -> None:
        """Begin, with a transport that another protocol had before."""
        self._transport = transport
        self._connections.add(self)
        connection = self._h2
        connection.encoder = BlockEncoder()
        connection.decoder = BlockDecoder(MAX_HEADER_BLOCK)
        connection.local_settings = H2Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                SettingCodes.MAX_FRAME_SIZE: MAX_FRAME,
                SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADER_BLOCK,
            },
        )
        connection.initiate_connection()
        # A client that opens more before it has read this gets REFUSED_STREAM: for h2 it would be
        # the end of the connection.
        connection.local_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 2**31 - 1
        connection.local_settings.acknowledge()
        connection.increment_flow_control_window(CONNECTION_WINDOW - 65_535)
        connection.receive_data(PREFACE)

    def connection_lost(self, error: Exception | None) -> None:
        """Requests that are being answered continue; their answers go nowhere."""
        self._is_closing = self._has_ended = True
        self._drop_streams()
        self._end()

    def data_received(self, data: bytes) -> None:
        self.moved_at = self._received_at = self._loop.time()
        self._pinged_at = None  # any byte is as good as the answer
        if self._is_closing:
            self._drop_in_turns()
            return
        self._reader.add(data)
        if not self._is_due and not self.is_write_paused:
            self._work()

    def eof_received(self) -> bool:
        """Answer what has arrived. TLS has no sides that end alone."""
        if self._is_closing or not self._streams or not self._transport.can_write_eof():
            return False
        self._has_ended = True
        for stream in self._streams.values():
            if not stream.is_complete:
                stream.is_cut = True
                stream.wake()
        self.hang_up()
        return True

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self._is_closing:
            self._send_waiting()
            if not self._is_due:
                self._work()

    # For `Stream`.

    def read(self, stream: Stream) -> None:
        """Open the windows again by what was read of a body."""
        if stream.unread_window and not self._is_closing:
            self._h2.acknowledge_received_data(stream.unread_window, stream.id)
            stream.unread_window = 0
            self._flush()

    def send_continue(self, stream: Stream) -> None:
        """Ask for a body."""
        if self._is_open(stream) and not stream.is_answered:
            self._h2.send_headers(stream.id, [(":status", "100")])
            self._flush()

    def answer(
        self, stream: Stream, status: int, headers: Iterable[tuple[str, str]], body: bytes
    ) -> None:
        """Send an answer. Raises ValueError for a header with a line break."""
        if not self._is_open(stream) or stream.is_answered:
            return
        fields = [response_field("date", date(int(time())))]
        fields += [response_field(name, value) for name, value in headers]
        if status in _WITHOUT_BODY or stream.is_head:
            body = b""
        else:
            fields.append(response_field("content-length", str(len(body))))
        block = [(b":status", b"%d" % status), (b"", b"".join(fields))]  # see `BlockEncoder`
        self._h2.send_headers(stream.id, block, end_stream=not body)
        stream.is_answered = True
        stream.answer = body
        stream.moved_at = self._loop.time()
        self._held += len(body)
        if body:
            self._send(stream)
        else:
            self._finish(stream)
        self._flush()

    # For `listener`.

    answers_all = True  # `hang_up` lets requests that are open finish

    @property
    def request(self) -> Stream | None:
        """One of the requests that are not answered, if there is any."""
        return next(iter(self._streams.values()), None)

    @property
    def is_idle(self) -> bool:
        """Whether the connection can end now without the loss of a request."""
        return not (
            self._streams
            or self._is_retiring
            or self._is_closing
            or self._reader.unfinished is not None
        )

    @property
    def idle_since(self) -> float | None:
        """As in `Http1Connection`. Requests that only wait for the client are no reason to stay."""
        streams = self._streams.values()
        if not streams:
            return None if self._is_closing and not self.unsent else self.moved_at
        if all(stream.is_answered or stream.id in self._begun for stream in streams):
            return max([stream.moved_at for stream in streams])
        return None

    def late(self, now: float, settings: Settings) -> str:
        """Why the connection ends now, if it has no request; a silent client gets a PING."""
        is_between = self.was_used and self._unfinished is None
        since = self._unfinished_since if self.was_used else self.waits_since
        if not is_between and now - since > settings.header_timeout:
            return "headers"
        if now - self.waits_since > settings.idle_timeout:
            return "idle"
        if self._pinged_at is not None:
            if now - self._pinged_at > settings.keepalive_timeout:
                return "keepalive"
        elif 0 < settings.keepalive_interval < now - self._received_at:
            self._pinged_at = now
            self._h2.ping(_KEEPALIVE)
            self._flush()
        return ""

    def note_progress(self, now: float) -> None:
        """Look whether the client takes what it was sent.

        While it takes others, an answer that stands still ends alone. Otherwise `listener` ends the
        connection.
        """
        super().note_progress(now)
        patience = self._body_timeout
        if self._waiting and now - self.unsent_since <= patience:
            for stream in list(self._waiting.values()):
                if now - stream.moved_at > patience:
                    self._reset(stream, ErrorCodes.CANCEL)
            self._flush()

    def retire(self) -> None:
        """Let the client leave in such a way that no request is lost."""
        if not (self._is_retiring or self._is_refusing or self._is_closing):
            self._is_retiring = True
            self._say_goaway(_ALL_STREAMS)
            self._h2.ping(_LEAVING)
            self._flush()

    def hang_up(self) -> None:
        """Take no further request; end the connection when the open ones are answered."""
        if not (self._is_refusing or self._is_closing):
            self._is_refusing = True
            self._say_goaway(self._last_stream_id)
        self._close_if_done()

    # What arrives.

    def _work(self) -> None:
        """Read the next frames, begin with their requests, and send what can be sent."""
        if self._is_closing or self.is_write_paused:
            return
        self._is_working = True
        try:
            content = self._reader.take(self._turns.share())
            self._turns.spend(self._reader.cost)
            # h2 has processed all of these frames already, so nothing is sent on a stream until
            # its last event is handled.
            for event in self._h2.receive_data(content) if content else ():
                if handler := _HANDLERS.get(type(event)):
                    handler(self, event)
            self._refuse()
        except Breach as breach:
            self._fail(breach.code)
        except ProtocolError:  # h2 has GOAWAY among its output
            self._fail(None)
        finally:
            self._is_working = False
        if self._is_closing:
            return
        if self._reader.unfinished != self._unfinished:
            self._unfinished = self._reader.unfinished
            self._unfinished_since = self._loop.time()
        self._begin()
        if self._window_has_grown:
            self._send_waiting()
        self._flush()
        if self._reader.is_client_leaving:
            self.hang_up()
        if self._reader.has_more and not self._is_closing and not self.is_write_paused:
            self._is_due = True
            self._pause_reading()
            self._turns.wait(self._next_turn)
        elif not self.is_write_paused:
            self._resume_reading()

    def _next_turn(self) -> None:
        self._is_due = False
        self._work()

    def _request_received(self, event: RequestReceived) -> None:
        stream_id = event.stream_id
        if self._is_refusing or max(len(self._streams), len(self._tasks)) >= MAX_STREAMS:
            self._refused[stream_id] = None
            return
        self.was_used = True
        self._last_stream_id = stream_id
        stream = self._streams[stream_id] = Stream(stream_id, self, self._received_at)
        block = tuple(event.headers)
        scope = self._scopes.get(block)
        if scope is None:
            stream.is_head = (b":method", b"HEAD") in block  # also of one that is refused here
            try:
                scope = RequestScope(block, self)
            except Malformed as error:
                self._malformed[stream_id] = error
                return
            size = sum([len(name) + len(value) for name, value in block])
            if size > _MAX_KNOWN_BYTES and not stream.count_headers(size, self.budget):
                self._malformed[stream_id] = Malformed(str(self.budget.refusal("http")), _NO_ROOM)
                return
            if len(block) <= _MAX_KNOWN_HEADERS and size <= _MAX_KNOWN_BYTES:
                if len(self._scopes) >= _MAX_KNOWN:
                    self._scopes.clear()
                self._scopes[block] = scope
        stream.is_head = scope.method == "HEAD"
        stream.expects_continue = scope.headers.get("expect", "").lower() == "100-continue"
        self._begun[stream_id] = scope, stream

    def _refuse(self) -> None:
        """Refuse the requests that do not reach the front. Raises Breach."""
        for stream_id in self._refused:
            self._h2.reset_stream(stream_id, ErrorCodes.REFUSED_STREAM)
            self._use_reset()
        self._refused.clear()
        for stream_id, error in self._malformed.items():
            body = orjson.dumps({"error": str(error)})
            headers = [("content-type", "application/json"), *SAFE_HEADERS]
            if error.status == _NO_ROOM:
                headers.append(("retry-after", "1"))
            self.answer(self._streams[stream_id], error.status, headers, body)
            self._use_reset()
        self._malformed.clear()

    def _data_received(self, event: DataReceived) -> None:
        stream = self._streams.get(event.stream_id)
        size = event.flow_controlled_length
        if not event.data and event.stream_ended is None:
            self._confirm(event)
        if stream is None or stream.is_answered or not event.data:
            self._h2.acknowledge_received_data(size, event.stream_id)
            return
        stream.received += event.data
        stream.unread_window += size
        stream.wake()

    def _stream_ended(self, event: StreamEnded) -> None:
        if stream := self._streams.get(event.stream_id):
            stream.is_complete = True
            stream.wake()

    def _stream_reset(self, event: StreamReset) -> None:
        self._refused.pop(event.stream_id, None)
        self._malformed.pop(event.stream_id, None)
        if stream := self._streams.get(event.stream_id):
            self._forget(stream)
            if self._received_at - stream.opened_at < _QUICK_RESET_S:
                self._use_reset()

    def _window_updated(self, event: Event) -> None:
        self._window_has_grown = True

    def _settings_changed(self, event: RemoteSettingsChanged) -> None:
        self._window_has_grown = True
        self._confirm(event)

    def _confirm(self, event: Event) -> None:
        """Count a frame that costs the client nothing. Raises Breach."""
        if not self._confirmations.use(self._received_at):
            raise Breach(ErrorCodes.ENHANCE_YOUR_CALM)

    def _ping_answered(self, event: PingAckReceived) -> None:
        if self._is_retiring and event.ping_data == _LEAVING:
            self.hang_up()

    def _use_reset(self) -> None:
        """Count a request that cost the client nothing. Raises Breach."""
        if not self._resets.use(self._received_at):
            if self._resets.is_overdrawn:
                raise Breach(ErrorCodes.ENHANCE_YOUR_CALM)
            self.retire()

    # Requests.

    def _begin(self) -> None:
        """Run the front for the requests whose headers have arrived."""
        while self._begun and self._held < _MOST_HELD and not self.is_write_paused:
            scope, stream = self._begun.pop(next(iter(self._begun)))
            stream.take_whole()
            task = self._loop.create_task(self._run(scope, stream))
            stream.is_begun = True
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, scope: RequestScope, stream: Stream) -> None:
        try:
            await self._front(scope, stream)
        except Exception:
            log.exception("A request could not be answered.")
        finally:
            stream.give_back_headers()
            if self._is_open(stream) and not stream.is_answered:
                self._reset(stream, ErrorCodes.INTERNAL_ERROR)
                self._flush()

    def _is_open(self, stream: Stream) -> bool:
        return not self._is_closing and self._streams.get(stream.id) is stream

    def _reset(self, stream: Stream, code: ErrorCodes) -> None:
        self._h2.reset_stream(stream.id, code)
        self._forget(stream)

    def _finish(self, stream: Stream) -> None:
        """An answer is sent."""
        if not stream.is_complete:  # the client may stop sending (RFC 9113, 8.1)
            self._h2.reset_stream(stream.id, ErrorCodes.NO_ERROR)
        self._resets.left += 1
        self._confirmations.left += 1
        self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        """A stream has ended, in whatever way."""
        del self._streams[stream.id]
        self._begun.pop(stream.id, None)
        self._waiting.pop(stream.id, None)
        self._held -= len(stream.answer) - stream.sent
        stream.is_cut = True
        stream.received.clear()
        stream.give_back()
        stream.wake()
        self.read(stream)
        if not self._streams:
            self.waits_since = self._loop.time()
            self._close_if_done()

    def _drop_streams(self) -> None:
        for stream in self._streams.values():
            stream.is_cut = True
            stream.give_back()
            stream.wake()
        self._streams.clear()
        self._begun.clear()
        self._waiting.clear()
        self._held = 0

    # What is sent.

    def _send(self, stream: Stream) -> None:
        """Send of an answer what the windows and the transport allow."""
        connection, body = self._h2, stream.answer
        while stream.sent < len(body):
            size = min(
                len(body) - stream.sent,
                connection.local_flow_control_window(stream.id),
                connection.max_outbound_frame_size,
                MAX_FRAME,
            )
            if size <= 0 or self.is_write_paused:
                # What got some of a window waits behind what got none.
                self._waiting.pop(stream.id, None)
                self._waiting[stream.id] = stream
                self._count(stream)
                return
            end = stream.sent + size
            connection.send_data(stream.id, body[stream.sent : end], end_stream=end == len(body))
            stream.sent = end
            if size >= _LEAST_PROGRESS:
                stream.moved_at = self._loop.time()
            self._held -= size
            self._unwritten += size
            if self._unwritten >= _WRITE_BYTES:
                self._write()
        self._finish(stream)

    def _count(self, stream: Stream) -> None:
        """Count in the budget what is left of an answer."""
        left = len(stream.answer) - stream.sent
        if stream.claim is None:
            displace = partial(self._give_up, stream)
            stream.claim = self.budget.answer(left, "http", displace)
        stream.claim.moved = stream.claim.size - left

    def _displace(self, error: InFlightLimit) -> None:
        """Others need the room: give up the largest answer that waits, and the socket after all."""
        if not self._waiting:
            super()._displace(error)
            return
        self._close_claim()
        self._claim_unwritten()
        largest = max(self._waiting.values(), key=lambda each: len(each.answer) - each.sent)
        self._give_up(largest, error)

    def _give_up(self, stream: Stream, error: InFlightLimit) -> None:
        """The client takes an answer slowly, and others need the room."""
        self._reset(stream, ErrorCodes.CANCEL)
        self._flush()

    def _send_waiting(self) -> None:
        """Use windows that have grown, the longest wait first."""
        self._window_has_grown = False
        for stream in list(self._waiting.values()):
            if self.is_write_paused:
                break
            if self._h2.local_flow_control_window(stream.id) > 0:
                self._send(stream)
        self._begin()
        self._flush()

    def _say_goaway(self, last_stream_id: int, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        self._write()
        if not self._transport.is_closing():
            self._transport.write(goaway(last_stream_id, code))

    def _flush(self) -> None:
        """Send what h2 has to send: at the end of this turn, if more may come."""
        if self._is_working:
            return
        if not self._streams:
            self._write()
        elif not self._is_to_write:
            self._is_to_write = True
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        self._is_to_write = False
        self._unwritten = 0
        content = self._h2.data_to_send()
        if content and not self._is_closing and not self._transport.is_closing():
            self._transport.write(content)

    # The end.

    def _fail(self, code: ErrorCodes | None) -> None:
        """End a connection whose client breaks the rules."""
        metrics.http_connection_closed("malformed")
        if code is not None:
            self._say_goaway(self._last_stream_id, code)
        self._drop_streams()
        self._is_refusing = True
        self._close_if_done()

    def _close_if_done(self) -> None:
        """End our side when no request is open, and soon the connection, as HTTP/1 does."""
        if not self._is_refusing or self._streams or self._is_closing:
            return
        self._write()
        self._close()


_Handler = Callable[[Http2Connection, Any], None]
_HANDLERS: dict[type[Event], _Handler] = {
    RequestReceived: Http2Connection._request_received,
    DataReceived: Http2Connection._data_received,
    StreamEnded: Http2Connection._stream_ended,
    StreamReset: Http2Connection._stream_reset,
    WindowUpdated: Http2Connection._window_updated,
    RemoteSettingsChanged: Http2Connection._settings_changed,
    PingReceived: Http2Connection._confirm,
    PingAckReceived: Http2Connection._ping_answered,
}
