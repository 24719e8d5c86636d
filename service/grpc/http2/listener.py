"""The asyncio side of the HTTP/2 front: the listening socket, its connections, tasks and timers."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import lru_cache, partial
from typing import Any

from service.access.tls import Tls
from service.access.tls_protocol import TlsProtocol
from service.core.budget import Budget, Claim
from service.core.callers import Callers
from service.core.errors import (
    DeadlineExceeded,
    InFlightLimit,
    InternalError,
    Overloaded,
    ServiceError,
    Unimplemented,
    excerpt,
)
from service.core.inflation import inflate
from service.core.sockets import claim_unwritten, reset
from service.core.turns import Turns
from service.grpc.answering import MESSAGE_SLACK, Call, Calls, Pipelined, Rpc
from service.grpc.http2.connection import Connection
from service.grpc.http2.events import (
    CallCancelled,
    CallEnded,
    CallStarted,
    Event,
    MessageReceived,
    MessagesEnded,
    OutputDrained,
)
from service.grpc.http2.headers import OK, RetryLater, Status
from service.grpc.http2.limits import Limits
from service.grpc.http2.pool import Pool
from service.grpc.http2.stream import State, Stream
from service.observe import metrics
from service.settings import Settings

log = logging.getLogger(__name__)

_BACKLOG = 1024
_TLS_BYTES = 64 * 1024  # that are read of a connection at a time
_ALPN = ("h2",)
# Bytes that one byte of deflate's format can stand for.
_MOST_INFLATED = 1032
# Seconds a peer may keep its side open after GOAWAY, and take to confirm one or to shake hands
# after `stop`.
_LINGER_S = 1.0

# The messages of a streaming call that it has not read; None after the last one.
_Inbox = asyncio.Queue[MessageReceived | None]


class Http2Server:
    """Listens on a port that the workers share; lives on the worker's event loop."""

    def __init__(
        self,
        rpcs: Mapping[str, Rpc],
        calls: Calls,
        settings: Settings,
        budget: Budget,
        callers: Callers,
        tls: Tls | None,
        turns: Turns,
    ) -> None:
        self._rpcs = rpcs
        self._calls = calls
        self._settings = settings
        # `Calls` refuses a message above the limit and names the setting. A message above twice the
        # limit is refused before it is received.
        self._max_message = 2 * (settings.max_request_bytes + MESSAGE_SLACK)
        self._callers = callers
        self._turns = turns
        self._connections: set[Http2Protocol] = set()
        self._pool = Pool(
            settings.max_connections,
            settings.max_open_calls,
            silence=settings.body_timeout,
            budget=budget,
        )
        self._tls = tls
        if tls:
            tls.context(*_ALPN)  # an error in it ends the start
        self._buffer = memoryview(bytearray(_TLS_BYTES if tls else 0))
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket | None = None) -> None:
        settings, loop = self._settings, asyncio.get_running_loop()
        make = self._protocol if self._tls is None else partial(self._secure, self._tls)
        if listener is not None:
            self._server = await loop.create_server(make, sock=listener, backlog=_BACKLOG)
        else:
            self._server = await loop.create_server(
                make,
                settings.host,
                settings.grpc_port,
                reuse_port=True,  # every worker binds the port; the kernel spreads connections
                backlog=_BACKLOG,
            )

    def _protocol(self) -> Http2Protocol:
        settings = self._settings
        # Connections that were opened at the same moment do not end at the same moment.
        max_age = settings.max_connection_age * random.uniform(0.9, 1.1)  # noqa: S311 (spreads the load, is not a secret)
        return Http2Protocol(
            rpcs=self._rpcs,
            calls=self._calls,
            limits=Limits(
                max_message=self._max_message,
                max_streams=settings.max_connections,
                body_timeout=settings.body_timeout,
                header_timeout=settings.header_timeout,
                idle_timeout=settings.idle_timeout,
                keepalive_interval=settings.keepalive_interval,
                keepalive_timeout=settings.keepalive_timeout,
                max_age=max_age,
                grace=settings.stop_timeout,
            ),
            inflate=self._inflate,
            connections=self._connections,
            pool=self._pool,
            callers=self._callers,
            turns=self._turns,
        )

    def _secure(self, tls: Tls) -> TlsProtocol:
        return TlsProtocol(tls.context(*_ALPN), self._protocol(), _ALPN, self._buffer)

    async def stop(self, timeout: float) -> None:
        """Send the clients elsewhere; give calls in flight `timeout` seconds to finish.

        New calls are answered until a client has confirmed that it heard of the end, for a second
        at most; from then on they are refused.
        """
        if self._server is not None:
            self._server.close()
        loop = asyncio.get_running_loop()
        began = loop.time()
        end = began + timeout
        while True:
            # Again in every turn: one that was accepted just before `close` is made after it.
            for connection in list(self._connections):
                # During its handshake, a client that knows GOAWAY could not be told.
                if loop.time() > began + _LINGER_S:
                    connection.stop()
                elif connection.is_open:
                    connection.retire()
            await asyncio.sleep(0.01)
            if not self._connections or loop.time() >= end:
                break
        for connection in list(self._connections):
            connection.abort()

    async def _inflate(self, content: bytes, encoding: str) -> bytes:
        """Decompress a message, always in a thread: its inflated size is unknown."""
        work = partial(inflate, content, encoding, self._max_message)
        return await asyncio.get_running_loop().run_in_executor(None, work)


class Http2Protocol(asyncio.Protocol):
    """Passes bytes between a socket and a `Connection`, and calls between that and `Calls`.

    Output is collected until the end of the event loop's turn, so all answers of one turn leave in
    one write. `inflate(content, encoding)` decompresses a message.
    """

    def __init__(
        self,
        *,
        rpcs: Mapping[str, Rpc],
        calls: Calls,
        limits: Limits,
        inflate: Callable[[bytes, str], Awaitable[bytes]],
        connections: set[Http2Protocol],
        pool: Pool,
        callers: Callers,
        turns: Turns,
    ) -> None:
        self._calls = calls
        self._inflate = inflate
        self._connections = connections
        self._pool = pool
        self._callers = callers
        self._turns = turns
        self._peer = ""  # the address, "" for a Unix socket
        self.client_name = ""  # of its verified certificate, if it has one
        self.is_open = True  # `TlsProtocol` sets both when its handshake is done
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._connection = Connection(
            rpcs, limits, calls.request_id, pool, now, self._admit if calls.gate else None
        )
        self._connection.wake = self._flush_soon
        self._flush_scheduled = False
        self._hung_up = False
        self._is_write_paused = False
        self._unwritten: Claim | None = None  # of what the transport holds, if it is paused
        self._is_waiting = False  # for its turn
        self._ticks: asyncio.TimerHandle | None = None
        self._lingering: asyncio.TimerHandle | None = None
        # Of each call, by its stream id: the task that answers it, and the timer of its deadline.
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        # Of each streaming call: its unread messages, and the event that `OutputDrained` sets.
        self._inboxes: dict[int, _Inbox] = {}
        self._drained: dict[int, asyncio.Event] = {}

    # Called by asyncio.

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        keep_alive(transport.get_extra_info("socket"), self._limits)
        if isinstance(peer := transport.get_extra_info("peername"), tuple):
            self._peer = peer[0]
        caller = self._callers.of(self._peer, ())
        if self._pool.add(self._connection, caller, self._loop.time()):
            self._connections.add(self)
            self._ticks = self._loop.call_later(self._limits.tick, self._tick)
        else:
            self._connection.refuse("too many connections (max_connections)")
        self._flush_soon()

    def connection_lost(self, error: Exception | None) -> None:
        """Cancel every call: its answer cannot be delivered."""
        self._connections.discard(self)
        self._pool.remove(self._connection)
        self._connection.lose()
        self._connection.wake = _nothing  # no cycle is left: this memory waits for no collection
        metrics.grpc_connection_closed(self._connection.reason)
        self._close_unwritten()
        for timer in (self._ticks, self._lingering):
            if timer is not None:
                timer.cancel()
        for stream_id in [*self._tasks, *self._timers]:
            self._cancel(stream_id)

    def handshake_failed(self) -> None:
        """The connection ends before it speaks HTTP/2."""
        self._connection.reason = "handshake"

    def pause_writing(self) -> None:
        """Take no more work from a peer that does not read its answers; count what it left."""
        self._is_write_paused = True
        self._claim_unwritten()
        self._connection.pause()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._close_unwritten()
        self._handle(self._connection.resume())
        self._wait()

    def _claim_unwritten(self) -> None:
        self._unwritten = claim_unwritten(
            self._pool.budget, self._transport, "grpc", self._displace
        )

    def _close_unwritten(self) -> None:
        if self._unwritten is not None:
            self._unwritten.close()
            self._unwritten = None

    def _displace(self, error: InFlightLimit) -> None:
        """Others need the room: give up the largest answer that waits, and the socket after all."""
        self._close_unwritten()
        if self._connection.give_up_answer(error):
            self._claim_unwritten()
        else:
            self._connection.reason = "unread"
            reset(self._transport)

    def data_received(self, data: bytes) -> None:
        connection, turns = self._connection, self._turns
        share = 0 if self._is_waiting else turns.share()
        events = connection.receive(data, self._loop.time(), share)
        turns.spend(connection.cost)
        self._handle(events)
        if connection.has_unread:
            self._transport.pause_reading()
            self._wait()

    def eof_received(self) -> bool:
        """Keep our side open for the answers that are due. TLS has no sides that end alone."""
        if not self._transport.can_write_eof():
            return False
        self._handle(self._connection.end_of_input(self._loop.time()))
        return True

    def _wait(self) -> None:
        if not self._is_waiting:
            self._is_waiting = True
            self._turns.wait(self._read_on)

    def _read_on(self) -> None:
        """Take what is left of the bytes received, and then more."""
        self._is_waiting = False
        if self._is_write_paused:
            return
        if self._connection.has_unread:
            self.data_received(b"")
        if not self._connection.has_unread:
            self._transport.resume_reading()

    # Events and timers.

    def _handle(self, events: list[Event]) -> None:
        timed: list[tuple[float, Stream]] = []
        for event in events:
            stream = event.stream
            if isinstance(event, MessageReceived):
                if stream.headers.is_unary:
                    if self._calls.overloaded and self._refuse_early(stream, event):
                        continue
                    work = self._answer(stream, event.flag, event.content)
                    self._tasks[stream.id] = self._loop.create_task(work)
                else:
                    self._inboxes[stream.id].put_nowait(event)
            elif isinstance(event, CallStarted):
                if stream.deadline is not None:
                    timed.append((stream.deadline, stream))
                if not stream.headers.is_unary:
                    inbox = self._inboxes[stream.id] = asyncio.Queue()
                    self._tasks[stream.id] = self._loop.create_task(self._stream(stream, inbox))
            elif isinstance(event, MessagesEnded):
                self._inboxes[stream.id].put_nowait(None)
            elif isinstance(event, OutputDrained):
                self._drained.pop(stream.id).set()
            elif isinstance(event, CallCancelled | CallEnded):
                self._cancel(stream.id)
        self._start_timers(timed)
        if self._connection.has_output or self._connection.closed:
            self._flush_soon()

    def _start_timers(self, timed: list[tuple[float, Stream]]) -> None:
        for deadline, stream in timed:
            # A timer takes long beside a refusal: a call that has ended by now gets none.
            if stream.status is None and stream.state != State.CLOSED:
                timer = self._loop.call_at(deadline, self._expire, stream)
                self._timers[stream.id] = timer

    def _expire(self, stream: Stream) -> None:
        error = DeadlineExceeded.of()
        self._cancel(stream.id)
        self._connection.expire(stream, Status(error.grpc_code, error.message))
        self._flush_soon()

    def _tick(self) -> None:
        self._ticks = self._loop.call_later(self._limits.tick, self._tick)
        self._handle(self._connection.tick(self._loop.time()))

    def _cancel(self, stream_id: int) -> None:
        if task := self._tasks.pop(stream_id, None):
            task.cancel()
        if timer := self._timers.pop(stream_id, None):
            timer.cancel()
        self._inboxes.pop(stream_id, None)
        self._drained.pop(stream_id, None)

    def _admit(self, stream: Stream) -> Status | None:
        """Find out who makes a call. Returns the status of one that is refused."""
        gate, headers = self._calls.gate, stream.headers
        assert gate is not None
        try:
            stream.identity = self._calls.admit(
                gate,
                headers.rpc,
                stream.request_id,
                authorization=headers.authorization,
                api_keys=headers.api_keys,
                caller=self._callers.of(self._peer, headers.forwarded),
                certificate=self._callers.certificate_of(
                    self._peer, self.client_name, headers.certificates
                ),
            )
        except ServiceError as error:
            return _status_of(error, stream.request_id)
        return None

    def _caller(self, stream: Stream) -> str:
        """Whom a call is from, for fairness."""
        if stream.identity is not None:
            return stream.identity.caller
        return self._callers.of(self._peer, stream.headers.forwarded)

    # Calls, each in its task.

    async def _answer(self, stream: Stream, flag: int, content: bytes) -> None:
        """Answer a unary call."""
        rpc = stream.headers.rpc
        assert rpc is not None
        try:
            if flag:
                content = await self._decompressed(stream, flag, content)
            identity = stream.identity
            # Looked up here: `_caller` would be one more call per request.
            caller = self._callers.known.get(self._peer) if identity is None else identity.caller
            if caller is None:
                caller = self._callers.of(self._peer, stream.headers.forwarded)
            trace = None
            if self._calls.traces is not None:
                trace = self._calls.traces.begin(*stream.headers.trace)
            answering = self._calls.answer(
                rpc, content, stream.deadline, stream.request_id, caller, identity, trace
            )
            del content  # so that it is freed when it is parsed
            answer = await answering
        except Exception as error:
            self._finish(stream, _status_of(error, stream.request_id))
        else:
            self._finish(stream, OK, answer)

    def _refuse_early(self, stream: Stream, message: MessageReceived) -> bool:
        """Refuse a call to a model that is overloaded, without a task for it."""
        rpc = stream.headers.rpc
        assert rpc is not None
        error = None
        if not message.flag:
            call = Call(stream.deadline, self._caller(stream), stream.identity)
            error = self._calls.early_refusal(rpc, message.content, call, stream.request_id)
        if error is not None:
            self._finish(stream, _refusal_status(error))
        return error is not None

    async def _stream(self, stream: Stream, inbox: _Inbox) -> None:
        """Answer a streaming call."""
        rpc = stream.headers.rpc
        assert rpc is not None
        is_pipelined = isinstance(rpc.method, Pipelined)
        trace = None
        if self._calls.traces is not None:
            trace = self._calls.traces.begin(*stream.headers.trace)
        try:
            async for answer in self._calls.stream(
                rpc,
                self._messages(stream, inbox),
                deadline=stream.deadline,
                request_id=stream.request_id,
                ends_with_error=stream.headers.ends_with_error,
                caller=self._caller(stream),
                identity=stream.identity,
                trace=trace,
            ):
                if is_pipelined:
                    self._connection.message_answered(stream)
                is_sent = self._connection.send(stream, answer)
                self._flush_soon()
                if not is_sent:
                    # The peer's window is full: take no further answer until this one is sent.
                    drained = self._drained[stream.id] = asyncio.Event()
                    await drained.wait()
        except Exception as error:
            self._finish(stream, _status_of(error, stream.request_id))
        else:
            self._finish(stream, OK)
        self._inboxes.pop(stream.id, None)

    async def _messages(self, stream: Stream, inbox: _Inbox) -> AsyncIterator[bytes]:
        """Yield the messages of a streaming call as they arrive."""
        assert stream.headers.rpc is not None
        is_pipelined = isinstance(stream.headers.rpc.method, Pipelined)
        while (message := await inbox.get()) is not None:
            self._connection.message_read(stream)
            if self._connection.has_output:
                self._flush_soon()
            if message.flag:
                yield await self._decompressed(stream, message.flag, message.content)
            else:
                yield message.content
            if not is_pipelined:
                self._connection.message_answered(stream)

    async def _decompressed(self, stream: Stream, flag: int, content: bytes) -> bytes:
        encoding = stream.headers.encoding
        if flag != 1 or encoding == "identity":
            raise InternalError("A message is flagged as compressed, but grpc-encoding is not set.")
        if encoding not in ("gzip", "deflate"):
            raise Unimplemented(
                f"grpc-encoding is '{excerpt(encoding)}'; send gzip, deflate or identity."
            )
        # What it inflates to is not known yet.
        most = min(_MOST_INFLATED * len(content) + 64, self._limits.max_message)
        claim = await self._pool.budget.room(most, "grpc")
        try:
            content = await self._inflate(content, encoding)
        except BaseException:
            claim.close()
            raise
        claim.complete(len(content))
        self._connection.message_inflated(stream, claim)
        return content

    def _finish(self, stream: Stream, status: Status, content: bytes | None = None) -> None:
        """End a call from its own task."""
        self._connection.finish(stream, status, content)
        self._tasks.pop(stream.id, None)
        # The deadline of an answer that waits for a window still counts.
        if self._timers and not stream.output and (timer := self._timers.pop(stream.id, None)):
            timer.cancel()
        self._flush_soon()

    # The end of the connection.

    def retire(self) -> None:
        """Ask the peer to connect again; once it has heard that, as `stop`."""
        self._connection.retire(self._loop.time())
        self._flush_soon()

    def stop(self) -> None:
        """Refuse new calls at once; close when those in flight are answered."""
        self._connection.stop()
        self._flush_soon()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def _flush_soon(self) -> None:
        """Write at the end of this turn of the event loop."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if events := self._connection.events():
            self._handle(events)
        if self._hung_up:
            return
        if self._transport.is_closing():
            self._connection.data_to_send()  # dropped: the client is gone
            if self._connection.closed:
                self._transport.abort()
            return
        if self._connection.has_output:
            self._transport.write(self._connection.data_to_send())
            if self._connection.has_more:
                self._handle(self._connection.send_more())  # which leaves in the next turn
        if self._connection.closed and not self._connection.has_output:
            # Close only our half now. Closing a socket that has unread bytes resets the connection,
            # and the peer would lose the GOAWAY frame with its reason.
            self._hung_up = True
            if self._transport.can_write_eof():
                self._transport.write_eof()
            latest = self._loop.time() + self._limits.body_timeout
            self._lingering = self._loop.call_later(_LINGER_S, self._linger, latest)

    def _linger(self, latest: float) -> None:
        """Close our other half, once the peer has taken what it was sent or has had its time."""
        if self._transport.get_write_buffer_size() and self._loop.time() < latest:
            self._lingering = self._loop.call_later(_LINGER_S, self._linger, latest)
        else:
            self._transport.abort()


def _nothing() -> None:
    pass


def keep_alive(connection: socket.socket | None, limits: Limits) -> None:
    """Let the kernel find out that a peer is gone: also one that has to be sent something."""
    if connection is None or not limits.keepalive_interval:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    interval = max(1, round(limits.keepalive_interval))
    timeout = max(1, round(limits.keepalive_timeout))
    for name, value in (
        ("TCP_KEEPIDLE", interval),
        ("TCP_KEEPINTVL", max(1, timeout // 4)),
        ("TCP_KEEPCNT", 4),
        ("TCP_USER_TIMEOUT", 1000 * (interval + timeout)),  # Linux only
    ):
        if option := getattr(socket, name, None):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


@lru_cache(64)
def _refusal_status(error: Overloaded) -> Status:
    """The status of an error that many calls have in common, encoded for the first of them."""
    return _status_of(error, "")


def _status_of(error: Exception, request_id: str) -> Status:
    if not isinstance(error, ServiceError):
        log.error("Request %s failed.", request_id, exc_info=error)
        error = InternalError.of(request_id)
    if isinstance(error, Overloaded):
        status = RetryLater(error.grpc_code, error.message)
        status.seconds = error.retry_after_s
        return status
    return Status(error.grpc_code, error.message)
