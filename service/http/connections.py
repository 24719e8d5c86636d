"""Closes HTTP connections that hold a place without using it.

Strategy: Granian accepts connections outside of Python, at most max_connections at a time; others
wait in the kernel's queue. It closes a connection whose headers are late and an HTTP/2 client that
answers no PING. It has no limit for a connection that sends nothing, for a client that does not
read its answer, and for an idle HTTP/2 client, and it closes none for a newcomer. So this module
looks at the sockets themselves. The kernel knows when bytes of a connection last came and went
(TCP_INFO), and how many connections wait. After shutdown(), Granian sees the end of a connection as
if the client had closed it. A connection with a request in flight is never closed.

Requests whose bodies are still arriving are in flight, and a client that stops sending costs itself
nothing. So at the limit, while others wait, slow bodies keep half of the places: beyond that, those
that have been silent for longest are refused, and their connections end with the answer.

A connection that sent nothing is one to which nothing was sent. With TLS that is not so: a
handshake sends something. There the front notes which clients have made a request.

Source: Linux, struct tcp_info in include/uapi/linux/tcp.h.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

from service.observe import metrics
from service.settings import Settings

_TICK_S = 0.1  # between two looks at the queue of newcomers
_PAUSES = 9  # after a look at all connections, by its duration: a tenth of a core at most
_LONGEST_SWEEP_S = 30.0  # between two looks at all connections
# What a newcomer may replace: a request may be on its way to a connection that was just accepted,
# and the rest of a body that has just begun to arrive.
_LEAST_IDLE_S = 1.0
_ESTABLISHED, _CLOSE_WAIT, _LISTEN = 1, 8, 10
_TCP_INFO = struct.Struct("=B23xI16xI4xI64xQ16xI")
_IS_SUPPORTED = sys.platform == "linux"


class _TcpInfo(NamedTuple):
    """Of a socket: its state; of a listening one, how many connections wait to be accepted.

    The times are milliseconds since data was last sent and received, or else since the connection
    was made.
    """

    state: int
    waiting: int
    since_sent: int
    since_received: int
    bytes_acked: int  # by the client
    bytes_unsent: int  # the client has no room for them


class _Open(NamedTuple):
    """A connection; times in seconds."""

    descriptor: int
    client_port: int
    idle: float  # since bytes last came or went
    unanswered: float  # since it was made, if nothing was sent to it yet; else 0
    unsent: float  # since anything was sent to it
    unread: (
        float  # since a part of an answer was sent, if the client does not take the rest; else 0
    )
    is_heard: bool = True  # False if it is known that no request has come


class Bodies(Protocol):
    """What arrives at the moment; clients are ADDRESS:PORT. `HttpFront` has it."""

    def slow_clients(self, seconds: float) -> set[str]:
        """Those with a body that has been arriving for this long."""

    def give_way(self, client: str) -> None:
        """Refuse what this client is sending."""


class Connections:
    """The HTTP connections of one worker; lives on its event loop.

    `in_flight` holds the client (ADDRESS:PORT) of every request that is not answered, and `heard`
    those of all requests so far: without TLS it is None. Closed connections are taken out of it.
    """

    def __init__(
        self,
        settings: Settings,
        in_flight: Mapping[Any, str],
        bodies: Bodies | None = None,
        heard: set[str] | None = None,
    ) -> None:
        self._port = settings.http_port
        self._max_connections = settings.max_connections
        self._header_timeout = settings.header_timeout
        self._idle_timeout = settings.idle_timeout
        self._body_timeout = settings.body_timeout
        self._in_flight = in_flight
        self._bodies = bodies
        self._heard = heard
        self._listener: int | None = None
        # Its own: under load, the threads of the default executor have much to do.
        self._thread = ThreadPoolExecutor(1, "connections")

    async def watch(self) -> None:
        """Close what is idle, and make room for newcomers, from now on."""
        if not _IS_SUPPORTED:
            return
        loop = asyncio.get_running_loop()
        shortest = min(self._header_timeout, self._idle_timeout, self._body_timeout)
        interval = min(shortest / 2, _LONGEST_SWEEP_S)
        next_sweep = loop.time()
        while True:
            await asyncio.sleep(min(_TICK_S, interval))
            newcomers = self._waiting()
            if newcomers or loop.time() >= next_sweep:
                began = loop.time()
                next_sweep = began + interval
                await self.sweep(newcomers)
                await asyncio.sleep(_PAUSES * (loop.time() - began))

    async def wait_until_none(self, seconds: float, has_to_end: Callable[[], bool]) -> None:
        """Wait until no connection is open: this long at most, and not if `has_to_end`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end and not has_to_end():
            if _IS_SUPPORTED and not await loop.run_in_executor(self._thread, self._scan):
                return
            await asyncio.sleep(_TICK_S)

    async def sweep(self, newcomers: int = 0) -> None:
        """Close what is too long idle, and at the limit the idlest ones for `newcomers`."""
        loop = asyncio.get_running_loop()
        heard = {_port(client): client for client in self._heard or ()}
        connections = await loop.run_in_executor(self._thread, self._scan)
        if self._heard is not None:
            # Only clients from before the scan: it may have missed newer connections.
            closed = heard.keys() - {each.client_port for each in connections}
            self._heard -= {heard[port] for port in closed}
            heard_now = {_port(client) for client in self._heard}
            connections = [
                each
                if each.client_port in heard_now
                else each._replace(unanswered=each.unsent, is_heard=False)
                for each in connections
            ]
        in_use = {_port(client) for client in self._in_flight.values()}
        idle = [each for each in connections if each.client_port not in in_use]
        room = newcomers if len(connections) >= self._max_connections else 0
        for connection in sorted(idle, key=lambda each: each.idle, reverse=True):
            if connection.unanswered > self._header_timeout:
                reason = "headers"
            elif connection.unread > self._body_timeout:
                reason = "unread"
            elif connection.idle > self._idle_timeout:
                reason = "idle"
            elif room > 0 and connection.idle > _LEAST_IDLE_S:
                reason = "displaced"
            else:
                continue
            room -= 1
            if _close(connection):
                metrics.http_connection_closed(reason)
        if room > 0 and self._bodies is not None:
            self._refuse_slow(self._bodies, room, {each.client_port: each for each in connections})

    def _refuse_slow(self, bodies: Bodies, room: int, connections: Mapping[int, _Open]) -> None:
        """Refuse bodies that are slow, beyond half of the places; at most `room` of them."""
        slow = {_port(client): client for client in bodies.slow_clients(_LEAST_IDLE_S)}
        silent = sorted(slow.keys() & connections.keys(), key=lambda port: connections[port].idle)
        for port in silent[max(1, self._max_connections // 2, len(silent) - room) :]:
            bodies.give_way(slow[port])
            metrics.http_connection_closed("displaced")

    def _waiting(self) -> int:
        """How many connections wait to be accepted."""
        if self._listener is not None:
            with contextlib.suppress(OSError), _borrowed(self._listener) as listener:
                return waiting_on(listener)
            self._listener = None  # the port is closed
        return 0

    def _scan(self) -> list[_Open]:
        """All connections of the port. Runs in a thread: there may be thousands."""
        found: list[_Open] = []
        try:
            descriptors = [int(entry.name) for entry in os.scandir("/proc/self/fd")]
        except OSError:  # no descriptor is free
            return found
        for descriptor in descriptors:
            with contextlib.suppress(OSError), _borrowed(descriptor) as borrowed:
                address = borrowed.getsockname()
                if not isinstance(address, tuple) or address[1] != self._port:
                    continue
                if _info_of(borrowed).state == _LISTEN:
                    self._listener = descriptor
                elif connection := _connection_of(descriptor, borrowed):
                    found.append(connection)
        return found


def waiting_on(listener: socket.socket) -> int:
    """How many connections a listening socket has not accepted. Raises OSError if it is none."""
    if not _IS_SUPPORTED:
        return len(select.select([listener], [], [], 0)[0])
    info = _info_of(listener)
    if info.state != _LISTEN:
        raise OSError(errno.EINVAL, "not a listening socket")
    return info.waiting


def _port(client: str) -> int:
    return int(client.rpartition(":")[2] or 0)


@contextlib.contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """A socket object for a descriptor of Granian, which stays open.

    Its family is only a placeholder. Calls raise OSError if it is no socket.
    """
    borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor)
    try:
        yield borrowed
    finally:
        borrowed.detach()


def _info_of(borrowed: socket.socket) -> _TcpInfo:
    content = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    return _TcpInfo(*_TCP_INFO.unpack(content))


def _connection_of(descriptor: int, borrowed: socket.socket) -> _Open | None:
    info = _info_of(borrowed)
    if info.state not in (_ESTABLISHED, _CLOSE_WAIT):
        return None
    idle = min(info.since_sent, info.since_received) / 1000
    unanswered = 0 if info.bytes_acked else info.since_sent / 1000
    unsent = info.since_sent / 1000
    unread = unsent if info.bytes_unsent else 0
    return _Open(descriptor, borrowed.getpeername()[1], idle, unanswered, unsent, unread)


def _close(connection: _Open) -> bool:
    """End a connection, unless it has been used since it was looked at."""
    try:
        # Granian may close its descriptor at any time, and open another under the same number.
        own = os.dup(connection.descriptor)
    except OSError:
        return False
    with contextlib.suppress(OSError), socket.socket(fileno=own) as same:
        now = _connection_of(own, same)
        if now is None or now.client_port != connection.client_port:
            return False
        if not connection.is_heard:
            now = now._replace(unanswered=now.unsent)
        is_unread = now.unread >= connection.unread > 0
        if is_unread:  # the kernel drops the rest of the answer when Granian closes the connection
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if is_unread or now.idle >= connection.idle or now.unanswered >= connection.unanswered > 0:
            same.shutdown(socket.SHUT_RDWR)
            return True
    return False
