"""What our own HTTP/1 and HTTP/2 have in common: the socket's side of a connection, and its end.

A connection ends in steps, so that an answer is not lost: our side first, and the rest when the
client has closed its side or a second is over. Closing a socket that has unread bytes would reset
the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from service.core.budget import Budget, Claim
from service.core.errors import InFlightLimit
from service.core.sockets import claim_unwritten, reset
from service.observe import metrics

Front = Callable[[Any, Any], Coroutine[Any, Any, None]]

# Bytes that are read of a connection before a request asks for them: clients send the next requests
# without waiting for their answers, and bodies before there is room for them.
READ_AHEAD = 64 * 1024
# Seconds in which a client may close its side after ours, and finish a head during a stop.
LINGER_S = 1.0


class Client(Protocol):
    """A connection, as the scopes of its requests see it."""

    scheme: str
    client: str
    server: str
    client_name: str


class Scope:
    """A request without its body, as `exchange.Scope`; `certificate` names the client of TLS."""

    __slots__ = (
        "authority",
        "certificate",
        "client",
        "headers",
        "http_version",
        "method",
        "path",
        "query_string",
        "scheme",
        "server",
    )

    def __init__(self, connection: Client) -> None:
        self.client = connection.client
        self.scheme = connection.scheme
        self.server = connection.server
        self.certificate = connection.client_name


class Carrier(asyncio.BufferedProtocol):
    """One connection of `listener.HttpListener`; HTTP/1 and HTTP/2 say what it speaks."""

    _transport: Any

    def __init__(
        self,
        front: Front,
        buffer: memoryview,
        connections: set[Any],
        lost: Callable[[], None],
        budget: Budget,
    ) -> None:
        """`buffer` is where bytes arrive; connections share it, as each takes its own out at once.

        `READ_AHEAD` bytes of it are read at a time, unless a request has asked for more.
        `lost` is called when the connection has ended. Answers that the client does not take are
        counted in `budget`.
        """
        self._front = front
        self._buffer = buffer
        self._ahead = buffer[:READ_AHEAD]
        self._connections = connections
        self._lost = lost
        self.budget = budget
        self._unwritten_claim: Claim | None = None  # of what the transport holds, if it is paused
        self._loop = asyncio.get_running_loop()
        self.is_open = True  # `TlsProtocol` sets it when its handshake is done
        self._has_ended = False  # the client has closed its side, or the connection is lost
        self._is_reading = True
        self._is_closing = False  # our side is closed
        self._lingering: asyncio.TimerHandle | None = None
        self.is_write_paused = False
        # For `listener`: when the wait for a request began, when bytes last came or went, how many
        # wait to be sent and since when it is as many, and whether there ever was a request.
        self.waits_since = self.moved_at = self.unsent_since = self._loop.time()
        self.unsent = 0
        self._held = 0  # bytes of answers that the transport does not have yet
        self.was_used = False

    def handshake_failed(self) -> None:
        """The connection ends before it speaks HTTP."""

    def get_buffer(self, size_hint: int) -> memoryview:
        return self._ahead

    def buffer_updated(self, count: int) -> None:
        self.data_received(bytes(self._buffer[:count]))

    def data_received(self, data: bytes) -> None:
        """Take bytes of the client; `TlsProtocol` calls it, too."""
        raise NotImplementedError

    def pause_writing(self) -> None:
        """Read nothing of a client that does not read its answers, and count what it left."""
        self.is_write_paused = True
        self._pause_reading()
        self._claim_unwritten()

    def resume_writing(self) -> None:
        self.is_write_paused = False
        self.moved_at = self._loop.time()
        self._close_claim()

    def note_progress(self, now: float) -> None:
        """Look whether the client takes what it was sent."""
        unwritten = self._transport.get_write_buffer_size()
        unsent = unwritten + self._held
        if unsent != self.unsent:
            self.unsent, self.unsent_since, self.moved_at = unsent, now, now

    @property
    def is_closing(self) -> bool:
        """Whether our side is closed."""
        return self._is_closing

    def reset(self) -> None:
        """End the connection at once, also for the kernel: it drops what is not sent."""
        self._is_closing = True
        reset(self._transport)

    def abort(self) -> None:
        """End the connection at once."""
        self._is_closing = True
        self._transport.abort()

    def _close(self) -> None:
        """End our side, and soon the connection."""
        self._is_closing = True
        if self._has_ended or self._transport.is_closing():
            self._transport.close()
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._resume_reading()  # so that nothing is unread at the end
        self._lingering = self._loop.call_later(LINGER_S, self._linger)

    def _drop_in_turns(self) -> None:
        """Let others have their turn before more is read and dropped: libuv would read 2 MB."""
        self._pause_reading()
        self._loop.call_soon(self._resume_reading)

    def _linger(self) -> None:
        """Close our other half, once the client has taken what it was sent."""
        if self._transport.get_write_buffer_size():
            # `listener` ends it if the client takes nothing.
            self._lingering = self._loop.call_later(LINGER_S, self._linger)
        else:
            self._transport.abort()

    def _end(self) -> None:
        """The connection is lost."""
        self._connections.discard(self)
        self._is_closing = True
        self._close_claim()
        if self._lingering is not None:
            self._lingering.cancel()
        self._lost()

    def _claim_unwritten(self) -> None:
        self._unwritten_claim = claim_unwritten(
            self.budget, self._transport, "http", self._displace
        )

    def _close_claim(self) -> None:
        if self._unwritten_claim is not None:
            self._unwritten_claim.close()
            self._unwritten_claim = None

    def _displace(self, error: InFlightLimit) -> None:
        """The client takes its answer slowly, and others need the room."""
        metrics.http_connection_closed("unread")
        self.reset()

    def _pause_reading(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self._is_reading and not self._transport.is_closing():
            self._is_reading = True
            self._transport.resume_reading()
