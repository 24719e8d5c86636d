"""Listens for HTTP: accepts connections within the limit, and closes those that hold a place.

At most max_connections are open. Further ones wait in the kernel's queue. While they do, the
connections that have been idle for longest make room for them, and slow bodies keep half of the
places (as in `connections`, which does the same for Granian). The rules of time are applied by one
timer, which looks at all connections.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import socket
from collections.abc import Callable
from typing import Any

from service.access.tls import Tls
from service.access.tls_protocol import TlsProtocol
from service.core.budget import Budget
from service.core.turns import Turns
from service.http.carrier import LINGER_S, READ_AHEAD, Front
from service.http.connections import Bodies, waiting_on
from service.http.http1.connection import AT_ONCE, Http1Connection, RefuseEarly
from service.http.http1.heads import Heads
from service.http.http2.connection import Http2Connection
from service.observe import metrics
from service.settings import Settings

log = logging.getLogger(__name__)

_ALPN = ("h2", "http/1.1")  # the best first
_PROTOCOLS = (*_ALPN, None)
_BACKLOG = 1024
_ACCEPTED_PER_TURN = 64
_TICK_S = 0.1  # between two looks at newcomers
_SHORTEST_SWEEP_S, _LONGEST_SWEEP_S = 0.025, 0.25  # between two looks at all connections
_PAUSE_S = 0.5  # after an accept that failed, as without a free descriptor
# What a newcomer may replace: a request may be on its way to a connection that was just accepted,
# and the rest of a body that has just begun to arrive.
_LEAST_IDLE_S = 1.0


class HttpListener:
    """The HTTP port of one worker; lives on its event loop."""

    def __init__(
        self,
        front: Front,
        bodies: Bodies,
        settings: Settings,
        turns: Turns,
        tls: Tls | None = None,
        refuse_early: RefuseEarly | None = None,
    ) -> None:
        self._front = front
        self._bodies = bodies
        self._refuse_early = refuse_early
        self._settings = settings
        self._tls = tls
        if tls:
            tls.context(*_ALPN)  # an error in it ends the start
        self._heads = Heads()
        self._buffer = memoryview(bytearray(AT_ONCE))
        self._connections: set[Http1Connection | Http2Connection] = set()
        self._turns = turns
        self._is_leaving = False
        self._joining: set[asyncio.Task[Any]] = set()
        self._listener: socket.socket | None = None
        self._is_accepting = False
        self._timer: asyncio.TimerHandle | None = None
        self._next_sweep = 0.0
        shortest = min(
            settings.header_timeout,
            settings.body_timeout,
            settings.idle_timeout,
            settings.keepalive_timeout,
            settings.keepalive_interval or math.inf,
        )
        self._sweep_s = max(_SHORTEST_SWEEP_S, min(shortest / 4, _LONGEST_SWEEP_S))

    def start(self, budget: Budget, listener: socket.socket | None = None) -> None:
        """Accept connections from now on: on a socket that is bound, or else on the port.

        `budget` counts answers that clients do not take.
        """
        self._budget = budget
        self._loop = asyncio.get_running_loop()
        settings = self._settings
        if listener is None:
            address = (settings.host, settings.http_port)
            family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
            listener = socket.create_server(address, family=family, reuse_port=True)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setblocking(False)
        listener.listen(_BACKLOG)
        self._listener = listener
        self._resume()
        self._tick()

    def accept_no_more(self) -> None:
        """Leave newcomers to others, or refuse them."""
        self._pause()
        self._listener = None

    def retire(self) -> None:
        """Let clients leave: those of HTTP/2 are told, also the ones that connect later."""
        self._is_leaving = True
        for connection in list(self._connections):
            connection.retire()

    async def wait_until_none(self, seconds: float, has_to_end: Callable[[], bool]) -> None:
        """Wait until no connection is open: this long at most, and not if `has_to_end`."""
        end = self._loop.time() + seconds
        while self._count() and self._loop.time() < end and not has_to_end():
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Accept no more connections, and wait until the open ones have ended.

        Those without a request end at once, and those with the begin of one after a second.
        """
        listener = self._listener
        self.accept_no_more()
        if listener is not None:
            listener.close()
        self.retire()
        began = self._loop.time()
        while self._count():
            is_late = self._loop.time() > began + LINGER_S
            for connection in list(self._connections):
                if connection.is_idle or (
                    is_late and (connection.request is None or connection.answers_all)
                ):
                    connection.hang_up()
            await asyncio.sleep(0.01)

    def _count(self) -> int:
        return len(self._connections) + len(self._joining)

    # Accepting.

    def _accept(self) -> None:
        """Take what waits, within the limit."""
        for _ in range(_ACCEPTED_PER_TURN):
            if self._listener is None or self._count() >= self._settings.max_connections:
                self._pause()
                return
            try:
                accepted, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ECONNABORTED:
                    continue
                # The worker logs that no descriptor is free (`Service.watch_descriptors`).
                self._pause()
                self._loop.call_later(_PAUSE_S, self._resume)
                return
            accepted.setblocking(False)
            joining = self._loop.create_task(self._join(accepted))
            self._joining.add(joining)
            joining.add_done_callback(self._joined)

    async def _join(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, accepted)
        except OSError:  # the client is gone
            accepted.close()

    def _joined(self, joining: asyncio.Task[Any]) -> None:
        self._joining.discard(joining)
        self._resume()

    def _protocol(self) -> asyncio.BaseProtocol:
        connection = Http1Connection(
            self._front,
            self._heads,
            self._buffer,
            self._connections,
            self._resume,
            self._budget,
            is_secure=self._tls is not None,
            speak_http2=self._speak_http2,
            refuse_early=self._refuse_early,
        )
        if self._tls is None:
            return connection
        context = self._tls.context(*_ALPN)
        return TlsProtocol(context, connection, _PROTOCOLS, self._buffer[:READ_AHEAD])

    def _speak_http2(self, before: Http1Connection, transport: Any, received: bytes) -> None:
        connection = Http2Connection(
            self._front,
            self._buffer,
            self._connections,
            self._resume,
            before,
            self._turns,
            body_timeout=self._settings.body_timeout,
        )
        transport.set_protocol(connection)
        connection.connection_made(transport)
        connection.data_received(received)
        if self._is_leaving:
            connection.retire()

    def _pause(self) -> None:
        if self._is_accepting and self._listener is not None:
            self._is_accepting = False
            self._loop.remove_reader(self._listener)

    def _resume(self) -> None:
        if (
            not self._is_accepting
            and self._listener is not None
            and self._count() < self._settings.max_connections
        ):
            self._is_accepting = True
            self._loop.add_reader(self._listener, self._accept)

    # The rules of time, and of places.

    def _tick(self) -> None:
        self._timer = self._loop.call_later(min(_TICK_S, self._sweep_s), self._tick)
        now = self._loop.time()
        newcomers = self._newcomers()
        if newcomers or now >= self._next_sweep:
            self._next_sweep = now + self._sweep_s
            self._sweep(now, newcomers)

    def _newcomers(self) -> int:
        """How many connections wait for a place."""
        if self._is_accepting or self._listener is None:
            return 0
        return waiting_on(self._listener)

    def _sweep(self, now: float, newcomers: int) -> None:
        settings = self._settings
        idle = []
        for connection in list(self._connections):
            connection.note_progress(now)
            if connection.unsent and now - connection.unsent_since > settings.body_timeout:
                self._end(connection.reset, "unread")
                continue
            is_unused = connection.request is None and not connection.is_closing
            if is_unused and (reason := connection.late(now, settings)):
                self._end(connection.hang_up, reason)
                continue
            if (since := connection.idle_since) is not None:
                idle.append((since, connection))
        if self._count() < settings.max_connections or not newcomers:
            return
        room = newcomers
        for since, connection in sorted(idle, key=lambda each: each[0])[:room]:
            if now - since > _LEAST_IDLE_S:
                room -= 1
                self._end(connection.abort, "displaced")
        if room:
            self._refuse_slow(room)

    def _end(self, how: Callable[[], None], reason: str) -> None:
        metrics.http_connection_closed(reason)
        how()

    def _refuse_slow(self, room: int) -> None:
        """Refuse bodies that are slow, beyond half of the places; at most `room` of them."""
        slow = self._bodies.slow_clients(_LEAST_IDLE_S)
        of = {each.client: each for each in self._connections if each.client in slow}
        silent = sorted(of, key=lambda client: -of[client].moved_at)
        for client in silent[max(1, self._settings.max_connections // 2, len(silent) - room) :]:
            self._bodies.give_way(client)
            if of[client].answers_all:  # of HTTP/1, the answer ends the connection
                of[client].hang_up()
            metrics.http_connection_closed("displaced")
