"""One HTTP/2 connection as far as gRPC uses HTTP/2: bytes in, events out, bytes to send.

Theory of operation. This module holds no socket, no event loop and no clock; `listener` does. The
life of a unary call, from bytes to bytes:

1. The listener passes the bytes that it read to `Connection.receive`. `FrameReader` (frames.py)
   splits them into frames and joins each HEADERS frame with its CONTINUATION frames.
2. HEADERS open a `Stream` (stream.py). `HeaderDecoder` (headers.py) looks up the method by the
   path. If the call has a deadline, the event `CallStarted` starts its timer.
3. DATA is counted against two windows, the connection's and the stream's, and collected by the
   stream. When half of a window is used, WINDOW_UPDATE opens it again.
4. At END_STREAM the stream is half-closed (remote) and its message is complete: the event
   `MessageReceived` makes the listener run the method in a task.
5. The task passes the answer and the status to `finish`. The stream turns them into frames
   (headers, DATA, trailers) as far as the peer's windows allow. The rest follows when the peer
   sends WINDOW_UPDATE. The trailers close the stream.
6. `data_to_send` returns the queued frames of all calls, for one write.

A streaming call differs in three points. Its task starts at `CallStarted`. Each message is an
event, and `MessagesEnded` follows the last. The task sends each message with `send`, and if one has
to wait for a window, `OutputDrained` reports that it is sent.

Three kinds of error: what breaks HTTP/2 for all calls (`ProtocolError`) ends the connection. The
peer gets GOAWAY with a reason, the listener gets `CallCancelled` for every call. What breaks HTTP/2
for one call (`StreamError`) ends that call with RST_STREAM. An error in gRPC ends the call with a
status in trailers.

Work is linear in the bytes of the peer. WINDOW_UPDATE of the connection and SETTINGS only change a
number; the calls that wait for a window are looked at once per `receive`. What costs the peer
nothing has an allowance (allowances.py), what takes time has its rules in timeouts.py, and what
calls hold of the worker's memory is counted in accounts.py.

Sources: RFC 9113 (HTTP/2); gRPC over HTTP2 (PROTOCOL-HTTP2.md).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial

from service.core.budget import Claim
from service.core.errors import InFlightLimit, excerpt
from service.grpc.answering import Rpc
from service.grpc.http2 import allowances, frames
from service.grpc.http2.accounts import Accounts
from service.grpc.http2.events import (
    CallCancelled,
    CallEnded,
    CallStarted,
    Event,
    MessageReceived,
    MessagesEnded,
    OutputDrained,
)
from service.grpc.http2.frames import FrameReader, ProtocolError, StreamError
from service.grpc.http2.headers import (
    MAX_HEADER_BLOCK,
    MAX_HEADER_LIST,
    HeaderDecoder,
    RequestHeaders,
    Status,
    http_error,
)
from service.grpc.http2.limits import Limits
from service.grpc.http2.pool import Pool
from service.grpc.http2.stream import STREAM_WINDOW, CallFailed, PeerSettings, State, Stream
from service.grpc.http2.timeouts import End, Timeouts

# Bytes that a peer may send on all streams of a connection before it must wait. This window is
# given back as bytes arrive: what a message may hold is bounded by the window of its stream, and a
# window that messages share would let one that does not continue hold up the others.
CONNECTION_WINDOW = 4 << 20
_MAX_FRAME = frames.DEFAULT_FRAME  # a connection keeps an unfinished frame, which is not counted
# The last stream of a GOAWAY that only announces the end (RFC 9113, 6.8).
_ALL_STREAMS = 2**31 - 1
_KEEPALIVE, _LEAVING = b"keepalv?", b"leaving?"  # the content of our PINGs
# Bytes of messages that are queued at a time. The rest stays where it is counted, and larger writes
# are no faster.
_MOST_QUEUED = 512 * 1024
# Calls that ended before their request did. Frames of theirs that arrive later are ignored.
_MAX_UNFINISHED = 1024
# Why a connection ends, beside the rules of time.
_STOPPING = End("stop", "the server is stopping")
_DISPLACED = End("displaced", "the server has too many connections (max_connections)")
_HALF_CLOSED = End("peer", "the client has closed its side")
_TOO_MANY_RESETS = End("resets", "too many calls given up", frames.ENHANCE_YOUR_CALM)


class Connection:
    """The server's side of one connection.

    `choose_request_id` returns the id of a call from its x-request-id header, or None. `pool` has
    all connections of the worker. `now` is always a time in seconds of the same monotonic clock.
    `admit` sets the identity of a call by its headers, or returns the status that refuses it; it is
    None if everyone may do everything.
    """

    def __init__(
        self,
        rpcs: Mapping[str, Rpc],
        limits: Limits,
        choose_request_id: Callable[[str | None], str],
        pool: Pool,
        now: float = 0.0,
        admit: Callable[[Stream], Status | None] | None = None,
    ) -> None:
        self._admit = admit
        self.closed = False  # nothing more is read or queued for sending
        self.reason = "peer"  # why it ended, for the metric
        # Called when something other than its bytes changes the connection: it may have output, be
        # closed, and have `events`.
        self.wake: Callable[[], None] = lambda: None
        self.used_at = now  # when it was opened, or its last whole message arrived
        self._stopping = False  # no new calls are accepted
        self._limits = limits
        self._pool = pool
        self._accounts = Accounts(pool.budget)
        self._paused = False  # the peer does not read its socket
        self._timeouts = Timeouts(limits, now)
        self._choose_request_id = choose_request_id
        self._reader = FrameReader(_MAX_FRAME, MAX_HEADER_BLOCK)
        self._decoder = HeaderDecoder(rpcs)
        self._handlers = _FIRST_HANDLERS
        self._streams: dict[int, Stream] = {}
        self._waiting: dict[int, Stream] = {}  # those whose output waits for a window
        # Ids of closed streams whose peer has not ended its side, the oldest first.
        self._unfinished: dict[int, None] = {}
        self._last_stream_id = 0
        self._receive_window = CONNECTION_WINDOW
        self._send_window = frames.DEFAULT_WINDOW
        self._peer = PeerSettings()
        self._most_send_credit = 0  # no stream has more
        self._window_has_grown = False  # since output was last tried
        self._room = _MOST_QUEUED  # bytes of messages that may still be queued
        self._has_more = False  # output waits for that room
        self._resets = allowances.resets()
        self._pings = allowances.pings()
        self._now = now  # when the peer's last bytes came
        self._events: list[Event] = []
        self._output: list[bytes | memoryview] = [
            frames.settings(
                {
                    frames.MAX_CONCURRENT_STREAMS: limits.max_streams,
                    frames.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                    frames.MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST,
                }
            ),
            frames.window_update(0, CONNECTION_WINDOW - frames.DEFAULT_WINDOW),
        ]

    # For the listener.

    def receive(self, data: bytes, now: float, at_most: int = sys.maxsize) -> list[Event]:
        """Take bytes from the peer and return what happened.

        After frames that cost `at_most`, the rest waits (`has_unread`) for the next call.
        """
        if self.closed:
            self._reader.cost = 0
            return []
        self._now = now
        try:
            for kind, flags, stream_id, payload in self._reader.frames(data, at_most):
                if self.closed:
                    break
                # Unknown types (RFC 9113, 5.5) need no reaction.
                if handler := self._handlers.get(kind):
                    try:
                        handler(self, flags, stream_id, payload)
                    except StreamError as error:
                        self._reset(stream_id, error.code)
            if self._waiting and self._window_has_grown:
                self._send_waiting()
        except ProtocolError as error:
            self._fail(End("error", str(error), error.code))
        return self.events()

    @property
    def has_unread(self) -> bool:
        """Whether `receive` has more to do without more bytes."""
        return self._reader.has_frame and not self.closed

    @property
    def cost(self) -> int:
        """What the last `receive` took, as `core.turns` counts it."""
        return self._reader.cost

    def events(self) -> list[Event]:
        """Return what happened since the last call."""
        events, self._events = self._events, []
        return events

    @property
    def has_output(self) -> bool:
        return bool(self._output)

    def data_to_send(self) -> bytes:
        """Return everything queued since the last call."""
        output = b"".join(self._output)
        self._output.clear()
        self._room = _MOST_QUEUED
        return output

    @property
    def has_more(self) -> bool:
        """Whether output had to wait for what `data_to_send` returned. If so, call `send_more`."""
        return self._has_more and not self._paused

    def give_up_answer(self, error: InFlightLimit) -> bool:
        """Refuse the largest answer that waits. Returns False if there is none."""
        if not self._waiting:
            return False
        largest = max(self._waiting.values(), key=lambda each: len(each.output) - each.sent)
        self._answer_refused(largest, error)
        return True

    def send_more(self) -> list[Event]:
        """Queue the next part of what waits."""
        self._send_waiting()
        return self.events()

    def send(self, stream: Stream, content: bytes) -> bool:
        """Send a message of a streaming call. If it returns False, wait for `OutputDrained`."""
        if stream.status is not None or stream.state == State.CLOSED:
            return True
        stream.send(content)
        self._send_frames(stream)
        return not stream.output

    def finish(self, stream: Stream, status: Status, content: bytes | None = None) -> None:
        """End a call with its status, and with the answer if it is unary.

        The trailers follow once all messages are sent. Finishing a call twice changes nothing.
        """
        if stream.status is not None or stream.state == State.CLOSED:
            return
        self._accounts.release(stream)
        stream.finish(status, content)
        self._send_frames(stream)

    def expire(self, stream: Stream, status: Status) -> None:
        """End a call whose deadline has passed, even if its answer waits for a window."""
        if stream.state != State.CLOSED:
            self._accounts.release(stream)
            stream.expire(status)
            self._send_frames(stream)

    def message_read(self, stream: Stream) -> None:
        """Count a message of a streaming call as read, so that its peer may send more."""
        stream.message_read()
        self._open_window(stream)

    def message_answered(self, stream: Stream) -> None:
        """Give back what the oldest message of a streaming call held."""
        self._accounts.message_answered(stream)

    def message_inflated(self, stream: Stream, claim: Claim) -> None:
        """Keep the claim of a message that was decompressed, in place of what it held before."""
        self._accounts.message_inflated(stream, claim)

    def pause(self) -> None:
        """Send no more messages: the peer does not read its socket."""
        self._paused = True
        self._timeouts.paused()

    def resume(self) -> list[Event]:
        """Send what has waited since `pause`."""
        self._paused = False
        self._send_waiting()
        return self.events()

    def tick(self, now: float) -> list[Event]:
        """Apply the rules of time (timeouts.py); call it every `Limits.tick` seconds."""
        if self.closed:
            return []
        timeouts = self._timeouts
        open_calls = len(self._streams)
        if open_calls:
            calls, waiting = self._streams.values(), self._waiting.values()
            for stream, status in timeouts.late_calls(calls, waiting, now):
                self._events.append(CallCancelled(stream))
                self.expire(stream, status)
        if timeouts.leaving is not None and timeouts.grace_is_over(now):
            self._leave(timeouts.leaving)
        elif end := timeouts.end(
            self._reader,
            open_calls=open_calls,
            is_paused=self._paused,
            used_at=self.used_at,
            received_at=self._now,
            now=now,
        ):
            self._fail(end)
        elif timeouts.needs_ping(self._now, now):
            self._ping(_KEEPALIVE, now)
        if old := timeouts.old_age(now):
            self.retire(now, old)
        return self.events()

    def retire(self, now: float, end: End = _STOPPING) -> None:
        """End the connection in such a way that no call is lost (RFC 9113, 6.8).

        First an announcement, and a PING: calls that the peer opened before it answers are still
        accepted. Then the end of new calls, and at last, after the grace, that of open ones.
        """
        if self._timeouts.leaving is None and not self._stopping and not self.closed:
            self._timeouts.leave(end, now)
            self._output.append(frames.goaway(_ALL_STREAMS, frames.NO_ERROR, end.reason))
            self._ping(_LEAVING, now)

    def _ping(self, content: bytes, now: float) -> None:
        self._output.append(frames.frame(frames.PING, 0, 0, content))
        self._timeouts.ping_sent(now)

    def stop(self, end: End = _STOPPING) -> None:
        """Refuse new calls at once; close when the open ones are finished."""
        if not self._stopping and not self.closed:
            self._stopping = True
            self.reason = end.cause
            self._output.append(frames.goaway(self._last_stream_id, frames.NO_ERROR, end.reason))
            self._close_if_done()

    def end_of_input(self, now: float) -> list[Event]:
        """Answer the calls that have arrived, within the grace: the peer sends nothing more.

        The GOAWAY finds out whether it still reads: if it does not, its kernel resets the
        connection.
        """
        if not self.closed:
            for stream in list(self._streams.values()):
                if stream.state == State.OPEN and stream.status is None:
                    self._drop(stream)
            if self._timeouts.leaving is None:
                self._timeouts.leave(_HALF_CLOSED, now)
            self.stop(_HALF_CLOSED)
            self._close_if_done()
        return self.events()

    def give_way(self) -> None:
        """Close in favour of another connection (`Pool`)."""
        self._leave(_DISPLACED)
        self.wake()

    @property
    def open_calls(self) -> int:
        return len(self._streams)

    @property
    def was_used(self) -> bool:
        """Whether the peer ever opened a call."""
        return self._last_stream_id > 0

    def refuse(self, reason: str) -> None:
        """Close the connection before it was used."""
        self._fail(End("refused", reason, frames.ENHANCE_YOUR_CALM))

    def lose(self) -> None:
        """Close the connection and its streams without a word: the peer is gone."""
        self.closed = True
        for stream in self._streams.values():
            stream.state = State.CLOSED
            self._accounts.release(stream)
            self._accounts.answer_sent(stream)
        self._pool.open_calls -= len(self._streams)
        self._streams.clear()
        self._waiting.clear()

    # Frames of the peer.

    def _receive_first_frame(self, flags: int, stream_id: int, payload: bytes) -> None:
        raise ProtocolError(frames.PROTOCOL_ERROR, "the preface is not followed by SETTINGS")

    def _receive_first_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & frames.ACK:
            self._receive_first_frame(flags, stream_id, payload)
        self._handlers = _HANDLERS
        self._receive_settings(flags, stream_id, payload)

    def _receive_headers(self, flags: int, stream_id: int, block: bytes) -> None:
        headers = self._decoder.decode(block)
        end_stream = bool(flags & frames.END_STREAM)
        if stream := self._streams.get(stream_id):
            # Trailers. gRPC has no use for a client's, but their END_STREAM counts.
            if stream.state == State.HALF_CLOSED_REMOTE:
                raise StreamError(frames.STREAM_CLOSED, "headers after the end of a stream")
            if not end_stream:
                raise StreamError(frames.PROTOCOL_ERROR, "headers in the middle of a stream")
            if not headers.are_trailers:
                raise StreamError(frames.PROTOCOL_ERROR, "malformed trailers")
            stream.receive(b"", 0, end_stream)
            self._take_messages(stream, end_stream)
        elif stream_id in self._unfinished:
            if end_stream:
                del self._unfinished[stream_id]
        elif stream_id % 2 == 0 or stream_id <= self._last_stream_id:
            raise ProtocolError(frames.PROTOCOL_ERROR, "a stream number that cannot be opened")
        else:
            self._last_stream_id = stream_id
            self._open(stream_id, headers, end_stream)

    def _open(self, stream_id: int, headers: RequestHeaders, end_stream: bool) -> None:
        open_calls = len(self._streams)
        if (
            self._stopping
            or open_calls >= self._limits.max_streams
            or not self._pool.may_open(open_calls)
        ):
            self._output.append(frames.reset(stream_id, frames.REFUSED_STREAM))
            if not end_stream:
                self._expect_more(stream_id)
            return
        if headers.is_malformed:
            if not end_stream:
                self._expect_more(stream_id)
            raise StreamError(frames.PROTOCOL_ERROR, "a malformed request")
        if headers.http_status != 200:
            flags = frames.END_HEADERS | frames.END_STREAM
            block = http_error(headers.http_status)
            self._output.append(frames.frame(frames.HEADERS, flags, stream_id, block))
            if not end_stream:
                self._output.append(frames.reset(stream_id, frames.NO_ERROR))
                self._expect_more(stream_id)
            return
        stream = Stream(
            stream_id,
            headers=headers,
            request_id=self._choose_request_id(headers.request_id),
            opened_at=self._now,
            peer=self._peer,
        )
        if end_stream:
            stream.receive(b"", 0, end_stream)
        self._streams[stream_id] = stream
        self._pool.open_calls += 1
        refusal = headers.refusal
        if refusal is None and self._admit is not None:
            refusal = self._admit(stream)
        if refusal is None and headers.rpc is None:
            refusal = Status("UNIMPLEMENTED", f"There is no method {excerpt(headers.path)}.")
        if refusal is not None:
            self.finish(stream, refusal)
            return
        # A unary call without a deadline has nothing to start yet.
        if stream.deadline is not None or not headers.is_unary:
            self._events.append(CallStarted(stream))
        if end_stream:
            self._take_messages(stream, end_stream)

    def _receive_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self._receive_window -= size
        if self._receive_window < CONNECTION_WINDOW // 2:
            if self._receive_window < 0:
                raise ProtocolError(frames.FLOW_CONTROL_ERROR, "more data than allowed")
            self._output.append(frames.window_update(0, CONNECTION_WINDOW - self._receive_window))
            self._receive_window = CONNECTION_WINDOW
        stream = self._streams.get(stream_id)
        content = frames.without_padding(payload) if flags & frames.PADDED else payload
        end_stream = bool(flags & frames.END_STREAM)
        if stream is None or stream.state == State.HALF_CLOSED_REMOTE:
            if self._is_idle(stream_id):
                raise ProtocolError(frames.PROTOCOL_ERROR, "data of a stream that was never opened")
            if stream_id not in self._unfinished:
                raise StreamError(frames.STREAM_CLOSED, "data after the end of a stream")
            if end_stream:
                del self._unfinished[stream_id]
            return  # the call is answered already
        stream.receive(content, size, end_stream)
        if stream.status is not None:
            return
        if self._accounts.count(stream, len(content)):
            if end_stream or not stream.is_within_claim:
                self._take_messages(stream, end_stream)
        else:
            error = self._accounts.refusal()
            self._cancel(stream, Status(error.grpc_code, error.message))

    def _take_messages(self, stream: Stream, end_stream: bool) -> None:
        """Report the messages that the latest frame of a stream has completed."""
        if stream.status is not None:
            return
        try:
            if stream.headers.is_unary:
                message = stream.take_message(self._limits.max_message)
                if message is not None:
                    self.used_at = self._now
                    flag, content = message
                    self._events.append(MessageReceived(stream, flag, content))
            else:
                for flag, content in stream.take_messages(self._limits.max_message):
                    self.used_at = self._now
                    self._events.append(MessageReceived(stream, flag, content))
                if end_stream:
                    self._events.append(MessagesEnded(stream))
        except CallFailed as failure:
            self._cancel(stream, failure.status)
            return
        if not end_stream:
            self._open_window(stream)

    def _open_window(self, stream: Stream) -> None:
        """Let the peer send on, as far as there is room."""
        if stream.must_claim:
            granted = partial(self._claim_granted, stream)
            refused = partial(self._claim_refused, stream)
            self._accounts.claim(stream, granted, refused)
        elif size := stream.grant():
            self._output.append(frames.window_update(stream.id, size))

    def _claim_granted(self, stream: Stream) -> None:
        """There is room for the message that is arriving."""
        if size := stream.grant():
            self._output.append(frames.window_update(stream.id, size))
        self.wake()

    def _claim_refused(self, stream: Stream, error: InFlightLimit) -> None:
        self._cancel(stream, Status(error.grpc_code, error.message))
        self.wake()

    def _receive_reset(self, flags: int, stream_id: int, payload: bytes) -> None:
        frames.read_word(payload)
        if self._is_idle(stream_id):
            raise ProtocolError(frames.PROTOCOL_ERROR, "a reset of a stream that was never opened")
        self._unfinished.pop(stream_id, None)
        if stream := self._streams.get(stream_id):
            self._drop(stream)
            if self._now - stream.opened_at < allowances.QUICK_RESET_S:
                self._use_allowance()
            self._close_if_done()

    def _receive_priority(self, flags: int, stream_id: int, payload: bytes) -> None:
        """RFC 9113, 5.3.2: a server may ignore what it says, but not that it is malformed."""
        if not stream_id:
            raise ProtocolError(frames.PROTOCOL_ERROR, "PRIORITY of no stream")
        if len(payload) != 5:
            raise StreamError(frames.FRAME_SIZE_ERROR, "PRIORITY of a wrong size")

    def _receive_goaway(self, flags: int, stream_id: int, payload: bytes) -> None:
        """A client that leaves still gets the answers to its calls."""
        if stream_id:
            raise ProtocolError(frames.PROTOCOL_ERROR, "GOAWAY of a stream")
        if len(payload) < 8:
            raise ProtocolError(frames.FRAME_SIZE_ERROR, "GOAWAY of a wrong size")

    def _receive_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ProtocolError(frames.PROTOCOL_ERROR, "SETTINGS of a stream")
        if flags & frames.ACK:
            if payload:
                raise ProtocolError(frames.FRAME_SIZE_ERROR, "SETTINGS with ACK and a payload")
            return
        peer = self._peer
        for name, value in frames.read_settings(payload):
            if name == frames.INITIAL_WINDOW_SIZE:
                if value + self._most_send_credit > frames.LARGEST_WINDOW:
                    # The stream with the most credit may have ended or sent since.
                    self._most_send_credit = max(
                        (stream.send_credit for stream in self._streams.values()), default=0
                    )
                if value + self._most_send_credit > frames.LARGEST_WINDOW:
                    raise ProtocolError(frames.FLOW_CONTROL_ERROR, "a window larger than allowed")
                self._window_has_grown |= value > peer.initial_window
                peer.initial_window = value
            elif name == frames.MAX_FRAME_SIZE:
                if not frames.DEFAULT_FRAME <= value <= frames.LARGEST_FRAME:
                    raise ProtocolError(frames.PROTOCOL_ERROR, "a frame size out of range")
                peer.max_frame = value
            elif name == frames.MAX_HEADER_LIST_SIZE:
                peer.max_header_list = value
            elif name == frames.ENABLE_PUSH and value > 1:
                raise ProtocolError(frames.PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
        self._output.append(frames.frame(frames.SETTINGS, frames.ACK, 0))

    def _receive_window_update(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = frames.read_word(payload)
        if stream_id:
            if stream := self._streams.get(stream_id):
                if size == 0:
                    raise StreamError(frames.PROTOCOL_ERROR, "a window update of zero")
                stream.enlarge_window(size)
                self._most_send_credit = max(self._most_send_credit, stream.send_credit)
                if stream.output:
                    self._resume(stream)
            elif self._is_idle(stream_id):
                reason = "a window update of a stream that was never opened"
                raise ProtocolError(frames.PROTOCOL_ERROR, reason)
            return
        if size == 0:
            raise ProtocolError(frames.PROTOCOL_ERROR, "a window update of zero")
        self._send_window += size
        if self._send_window > frames.LARGEST_WINDOW:
            raise ProtocolError(frames.FLOW_CONTROL_ERROR, "a window larger than allowed")
        self._window_has_grown = True

    def _receive_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ProtocolError(frames.PROTOCOL_ERROR, "PING of a stream")
        if len(payload) != 8:
            raise ProtocolError(frames.FRAME_SIZE_ERROR, "a PING of a wrong size")
        if not flags & frames.ACK:
            if not self._pings.use(self._now):
                raise ProtocolError(frames.ENHANCE_YOUR_CALM, "too_many_pings")
            self._output.append(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif payload == _LEAVING and (leaving := self._timeouts.leaving) is not None:
            self.stop(leaving)

    def _receive_push_promise(self, flags: int, stream_id: int, payload: bytes) -> None:
        raise ProtocolError(frames.PROTOCOL_ERROR, "a client cannot push")

    # Frames to the peer.

    def _send_waiting(self) -> None:
        """Use windows that have grown, the longest wait first."""
        if self._paused:
            return
        self._window_has_grown = self._has_more = False
        for stream in list(self._waiting.values()):
            if self._send_window <= 0:
                return
            if self._room <= 0:
                self._has_more = True
                return
            if stream.send_window > 0:
                self._resume(stream)

    def _resume(self, stream: Stream) -> None:
        """Send messages that waited for a window."""
        self._send_frames(stream)
        if not stream.output:
            if stream.status is None:
                self._events.append(OutputDrained(stream))
            elif stream.deadline is not None:
                self._events.append(CallEnded(stream))

    def _send_frames(self, stream: Stream) -> None:
        """Queue the frames that the windows allow; close the stream after its trailers."""
        window = 0 if self._paused else min(self._send_window, self._room)
        parts, used = stream.next_frames(window)
        self._send_window -= used
        self._room -= used
        self._output += parts
        if stream.output:
            self._has_more |= self._room <= 0
            # What got some of a window waits behind what got none.
            if used:
                self._waiting.pop(stream.id, None)
            self._waiting[stream.id] = stream
            refused = partial(self._answer_refused, stream)
            # What waits only for the next turn of the loop, or alone, is not refused.
            is_moving = not self._paused and self._send_window > 0 and stream.send_window > 0
            must_fit = not is_moving and len(self._waiting) > 1
            if error := self._accounts.answer_waits(stream, must_fit, refused):
                self._answer_refused(stream, error)
            return
        if self._waiting:
            self._waiting.pop(stream.id, None)
            self._accounts.answer_sent(stream)
        if stream.status is None:
            return
        if stream.state == State.HALF_CLOSED_LOCAL:
            # The peer has its answer and may stop sending (RFC 9113, 8.1).
            self._output.append(frames.reset(stream.id, frames.NO_ERROR))
            stream.state = State.CLOSED
            self._expect_more(stream.id)
        self._resets.left += 1
        self._pings.left += 1
        del self._streams[stream.id]
        self._pool.open_calls -= 1
        if self._stopping:
            self._close_if_done()

    def _answer_refused(self, stream: Stream, error: InFlightLimit) -> None:
        self._events.append(CallCancelled(stream))
        self.expire(stream, Status(error.grpc_code, error.message))
        self.wake()

    # The end.

    def _cancel(self, stream: Stream, status: Status) -> None:
        """End a call because of its peer."""
        self._events.append(CallCancelled(stream))
        self.finish(stream, status)

    def _reset(self, stream_id: int, code: int) -> None:
        """End one call because its peer broke HTTP/2 for it."""
        if self._is_idle(stream_id):
            raise ProtocolError(code, "an error on a stream that was never opened")
        self._output.append(frames.reset(stream_id, code))
        if stream := self._streams.get(stream_id):
            if stream.state == State.OPEN:
                self._expect_more(stream_id)
            self._drop(stream)
        self._use_allowance()
        self._close_if_done()

    def _drop(self, stream: Stream) -> None:
        """Forget a stream that is reset."""
        stream.state = State.CLOSED
        del self._streams[stream.id]
        self._pool.open_calls -= 1
        self._accounts.release(stream)
        self._waiting.pop(stream.id, None)
        self._accounts.answer_sent(stream)
        self._events.append(CallCancelled(stream))

    def _expect_more(self, stream_id: int) -> None:
        """Remember that the peer may still send on a closed stream (RFC 9113, 5.1)."""
        self._unfinished[stream_id] = None
        if len(self._unfinished) > _MAX_UNFINISHED:
            del self._unfinished[next(iter(self._unfinished))]

    def _use_allowance(self) -> None:
        """Count a call that cost its peer nothing.

        A peer without allowance is asked to connect again, which costs it more than we save by
        ending its connection, and loses no call of others behind the same proxy. One that does not
        follow is cut off.
        """
        if self._resets.use(self._now):
            return
        if self._resets.is_overdrawn:
            raise ProtocolError(_TOO_MANY_RESETS.code, _TOO_MANY_RESETS.reason)
        self.retire(self._now, _TOO_MANY_RESETS)

    def _is_idle(self, stream_id: int) -> bool:
        """Whether a stream was never opened. Only a client opens streams: odd ones (5.1.1)."""
        return stream_id > self._last_stream_id or stream_id % 2 == 0

    def _close_if_done(self) -> None:
        if self._stopping and not self._streams:
            self.closed = True

    def _leave(self, end: End) -> None:
        """End the connection without a fault of the peer; open calls get a status."""
        for stream in list(self._streams.values()):
            self._events.append(CallCancelled(stream))
            self.expire(stream, Status("UNAVAILABLE", f"Connect again: {end.reason}."))
        self._fail(end)

    def _fail(self, end: End) -> None:
        """End the connection."""
        if not self.closed:
            self.reason = end.cause
            self._output.append(frames.goaway(self._last_stream_id, end.code, end.reason))
            self._events += [CallCancelled(stream) for stream in self._streams.values()]
            self.lose()


_Handler = Callable[[Connection, int, int, bytes], None]
_HANDLERS: dict[int, _Handler] = {
    frames.DATA: Connection._receive_data,
    frames.HEADERS: Connection._receive_headers,
    frames.PRIORITY: Connection._receive_priority,
    frames.RST_STREAM: Connection._receive_reset,
    frames.SETTINGS: Connection._receive_settings,
    frames.PUSH_PROMISE: Connection._receive_push_promise,
    frames.PING: Connection._receive_ping,
    frames.GOAWAY: Connection._receive_goaway,
    frames.WINDOW_UPDATE: Connection._receive_window_update,
}
# RFC 9113, 3.4: SETTINGS come first.
_FIRST_HANDLERS: dict[int, _Handler] = {
    **dict.fromkeys(range(256), Connection._receive_first_frame),
    frames.SETTINGS: Connection._receive_first_settings,
}
