"""One HTTP/1 connection: an asyncio protocol that hands requests to the front, one at a time.

The life of a request: `data_received` finds the end of its head, `Heads` parses it, and a task runs
the front with a `Request`. Most bodies have arrived with the head by then. Of others, `Request`
asks for more, and reading pauses in between. The front answers with `response_bytes`, and
the next request, which may be in the buffer already (pipelining), begins.

How a connection ends is in `carrier`, and what ends those that hold a place without using it in
`listener`.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson

from service.core.budget import Budget
from service.http.carrier import READ_AHEAD, Carrier, Front, Scope
from service.http.exchange import Ended
from service.http.http1.chunks import ChunkedBody
from service.http.http1.heads import (
    CHUNKED,
    MAX_HEAD,
    MAX_KNOWN,
    Head,
    Heads,
    Malformed,
    check_begin,
)
from service.http.http1.responses import CONTINUE, encode, refusal
from service.observe import metrics
from service.settings import Settings

log = logging.getLogger(__name__)

RefuseEarly = Callable[[Any, Any, bytes | None], bool]

_EMPTY_LINES = re.compile(rb"(?:\r\n)+")
# Bytes of a body that are read before others get their turn: libuv would read 32 times as much.
AT_ONCE = 256 * 1024
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, 3.4


class RequestScope(Scope):
    """Of a head; equal requests of a connection share it."""

    __slots__ = ()

    def __init__(self, head: Head, connection: Http1Connection) -> None:
        super().__init__(connection)
        self.method = head.method
        self.path = head.path
        self.query_string = head.query_string
        self.headers = head.headers
        self.authority = head.authority
        self.http_version = head.http_version


class Request:
    """One request, as `exchange.Exchange`. `whole` is its body if it came with the head."""

    __slots__ = ("_chunks", "_connection", "_is_asked_for", "_left", "head", "whole")

    def __init__(self, connection: Http1Connection, head: Head) -> None:
        """Take the body out of what has arrived, if that is all of it."""
        self._connection = connection
        self.head = head
        self._is_asked_for = not head.expects_continue
        self._chunks: ChunkedBody | None = None
        size = self._left = head.size  # bytes of a body with a length that are not read
        self.whole: bytes | None = None
        if size == len(connection.unread):  # nearly always
            self.whole, self._left, connection.unread = connection.unread, 0, b""
        elif size == CHUNKED:
            self._chunks = ChunkedBody()
        elif size < len(connection.unread):
            self.whole = self._take(connection)

    async def __call__(self) -> bytes:
        """The whole body. Raises Ended."""
        if self.whole is not None:
            return self.whole
        pieces = [piece async for piece in self]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body in pieces. Raises Ended."""
        if self.whole is not None:
            yield self.whole
            return
        connection = self._connection
        while not self.is_read:
            if connection.unread:
                piece = self._take(connection)
                if piece:
                    yield piece
                    if self._chunks is not None and connection.unread:
                        await asyncio.sleep(0)  # there may be thousands of chunks
                    continue
                if self.is_read:
                    return
            if not self._is_asked_for:
                self._is_asked_for = True
                connection.write(CONTINUE)
            await connection.more()

    @property
    def is_read(self) -> bool:
        """Whether the end of the body has been read."""
        return self._left == 0 if self._chunks is None else self._chunks.is_complete

    def _take(self, connection: Http1Connection) -> bytes:
        unread = connection.unread
        if self._chunks is None:
            left = self._left
            if len(unread) <= left:
                connection.unread = b""
                self._left = left - len(unread)
                return unread
            connection.unread = unread[left:]
            self._left = 0
            return unread[:left]
        try:
            piece, connection.unread = self._chunks.take(unread)
        except Malformed:
            raise Ended from None
        return piece

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """Send the answer."""
        self._connection.answer(self, status, headers, body)


class Http1Connection(Carrier):
    """One connection; `listener.HttpListener` has all of them."""

    def __init__(
        self,
        front: Front,
        heads: Heads,
        buffer: memoryview,
        connections: set[Any],
        lost: Callable[[], None],
        budget: Budget,
        *,
        is_secure: bool,
        speak_http2: Callable[[Http1Connection, Any, bytes], None] | None = None,
        refuse_early: RefuseEarly | None = None,
    ) -> None:
        """`speak_http2` takes over from a client that begins with the preface of HTTP/2.

        It gets the transport and what follows the preface. `refuse_early` may answer a request at
        once; it gets the body if that has arrived. The others are as in `Carrier`.
        """
        super().__init__(front, buffer, connections, lost, budget)
        self._heads = heads
        self._speak_http2 = speak_http2
        self._refuse_early = refuse_early
        self.scheme = "https" if is_secure else "http"
        self.client = self.server = self.client_name = ""
        self.unread = b""
        self._searched = 0  # bytes of it, in which no head ends
        self.request: Request | None = None  # the one that is being answered
        # Of the latest request. `_known` are the bytes of its head, none if it is long.
        self._scope: tuple[Head, RequestScope] | None = None
        self._known = b""
        self._task: asyncio.Task[None] | None = None  # that answers it
        self._waiter: asyncio.Future[None] | None = None  # of a body
        self._has_begun = False  # bytes of the next head have come

    # Called by asyncio, or by `TlsProtocol`.

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._connections.add(self)
        self.client = _address(transport.get_extra_info("peername"))
        self.server = _address(transport.get_extra_info("sockname"))

    def connection_lost(self, error: Exception | None) -> None:
        """Cancel the request that is being answered: its client is gone."""
        if self.request is not None and self._task is not None:
            self._task.cancel()
        self.request = None
        self._end()

    def get_buffer(self, size_hint: int) -> memoryview:
        """The whole buffer for a body that is waited for: fewer reads, and fewer pieces to join."""
        return self._ahead if self._waiter is None else self._buffer

    def data_received(self, data: bytes) -> None:
        self.moved_at = self._loop.time()
        if self._is_closing:
            self._drop_in_turns()
            return
        unread = self.unread
        if self.request is None:
            if not self._has_begun:  # empty lines do not begin the time again
                self._has_begun = True
                self.waits_since = self.moved_at
            self.unread = unread + data if unread else data
            self._next()
            return
        self.unread = unread + data if unread else data
        if self._waiter is not None:
            self._wake()
            if len(self.unread) >= AT_ONCE:
                self._pause_reading()
        elif len(self.unread) > READ_AHEAD or not self.request.is_read:
            self._pause_reading()

    def eof_received(self) -> bool:
        """Keep our side open for an answer that is due. TLS has no sides that end alone."""
        if self._is_closing or not self._transport.can_write_eof():
            return False
        self._has_ended = True
        self._wake()
        if self.request is None and not self.is_write_paused:
            self._next()  # a request that waits for its turn
            return self.request is not None
        return True

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.request is None:
            self._next()

    # For `Request`.

    async def more(self) -> None:
        """Wait for more bytes of a body. Raises Ended."""
        if self._has_ended:
            raise Ended
        self._waiter = self._loop.create_future()
        self._resume_reading()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def write(self, data: bytes) -> None:
        """Send bytes, if the connection is open."""
        if not self._is_closing and not self._transport.is_closing():
            self._transport.write(data)

    def answer(
        self, request: Request, status: int, headers: list[tuple[str, str]], body: bytes
    ) -> None:
        """Send an answer; then take the next request, or end the connection. Raises ValueError."""
        if request is not self.request:
            return  # the connection is lost
        closes = (
            not request.head.keeps_alive
            or (request.whole is None and not request.is_read)
            or (self._has_ended and not self.unread)
            or ("connection", "close") in headers
        )
        content = encode(request.head, status, headers, body, closes=closes)
        self.request = None  # not before: a request that cannot be answered ends the connection
        self.write(content)
        self.waits_since = self.moved_at = self._loop.time()
        self._has_begun = bool(self.unread)
        if closes:
            self.hang_up()
        elif self.unread:
            # Not now: this is the task of the request that was answered.
            self._loop.call_soon(self._next)
        elif not (self._is_reading or self.is_write_paused):
            self._resume_reading()

    # For `listener`.

    answers_all = False  # `hang_up` cuts a request off

    @property
    def is_idle(self) -> bool:
        """Whether the connection is open, and no request has begun to arrive."""
        return self.request is None and not self.unread and not self._is_closing

    @property
    def idle_since(self) -> float | None:
        """Since when the connection can make room for others; None if it cannot, or ends anyway."""
        if self.request is not None or (self._is_closing and not self.unsent):
            return None
        return self.moved_at

    def late(self, now: float, settings: Settings) -> str:
        """Why the connection ends now, if it has no request."""
        if self.unsent or now - self.waits_since <= settings.header_timeout:
            return ""
        return "idle" if self.was_used and not self.unread else "headers"

    def retire(self) -> None:
        """Nothing: a client of HTTP/1 is told by `connection: close` in its next answer."""

    def hang_up(self) -> None:
        """End our side, and soon the connection."""
        if not self._is_closing:
            self.unread = b""
            self._close()

    # The rest.

    def _next(self) -> None:
        """Begin the next request, if its head has arrived."""
        if self.request is not None or self._is_closing or self.is_write_paused:
            return
        if self._known and self.unread.startswith(self._known):  # clients repeat their heads
            self.unread = self.unread[len(self._known) :]
        elif not self._has_taken_head():
            return
        assert self._scope is not None
        head, scope = self._scope
        self._searched = 0
        self.was_used = True
        request = self.request = Request(self, head)
        if self.unread and (request.whole is None or len(self.unread) > READ_AHEAD):
            self._pause_reading()
        if self._refuse_early is None or not self._refuse_early(scope, request, request.whole):
            self._task = self._loop.create_task(self._run(scope, request))

    def _has_taken_head(self) -> bool:
        """Take the next head out of what has arrived, if all of it has, as that of `_scope`."""
        unread = self.unread
        if empty := _EMPTY_LINES.match(unread):  # before a request (RFC 9112, 2.2)
            unread = self.unread = unread[empty.end() :]
            self._searched = 0
        end = unread.find(b"\r\n\r\n", max(self._searched - 3, 0), MAX_HEAD)
        try:
            if end < 0:
                self._searched = len(unread)
                if unread and unread != b"\r":
                    check_begin(unread)
                if self._has_ended:
                    self.hang_up()
                else:
                    self._resume_reading()
                return False
            head = self._heads.parse(unread[:end])
        except Malformed as error:
            if (speak := self._speak_http2) and self._may_be_preface(unread):
                if len(unread) >= len(PREFACE):
                    self._is_closing = True  # for this object
                    self._connections.discard(self)
                    speak(self, self._transport, unread[len(PREFACE) :])
                return False
            metrics.http_connection_closed("malformed")
            is_head = unread.startswith(b"HEAD ")
            body = b"" if is_head else orjson.dumps({"error": str(error)})
            self.write(refusal(error.status, body))
            self.hang_up()
            return False
        end += 4
        self._known = unread[:end] if end <= MAX_KNOWN else b""
        self.unread = unread[end:]
        if self._scope is None or self._scope[0] is not head:
            self._scope = head, RequestScope(head, self)
        return True

    def _may_be_preface(self, unread: bytes) -> bool:
        """Whether a connection begins with HTTP/2's preface, as far as it has come."""
        return not self.was_used and PREFACE.startswith(unread[: len(PREFACE)])

    async def _run(self, scope: RequestScope, request: Request) -> None:
        try:
            await self._front(scope, request)
        except Exception:
            log.exception("A request could not be answered.")
        finally:
            if request is self.request:
                self.abort()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _address(pair: Any) -> str:
    """ADDRESS:PORT; empty for a Unix socket."""
    return f"{pair[0]}:{pair[1]}" if isinstance(pair, tuple) else ""
