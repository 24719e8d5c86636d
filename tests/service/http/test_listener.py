"""The HTTP port with real sockets: places, times, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import h2.connection
import h2.events
import h2.exceptions
import pytest
import uvloop

from service.core.budget import Budget
from service.core.turns import Turns
from service.http.http1.connection import PREFACE, Request, RequestScope
from service.http.listener import HttpListener
from service.settings import Settings

REQUEST = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
SLOW = b"POST /slow HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n"
LARGE = b"GET /large HTTP/1.1\r\nHost: h\r\n\r\n"
LAST = b"GET /large HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
SECONDS = 120  # within which everything here happens


class Port:
    """A listener with a front of its own, and clients."""

    def __init__(self, stack: contextlib.ExitStack, **settings: Any) -> None:
        self._stack = stack
        self.socket = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
        self.address = self.socket.getsockname()
        self.gave_way: list[str] = []
        self.slow: dict[str, float] = {}
        self.goes_on = asyncio.Event()
        self.clients: list[socket.socket] = []
        long = {"header_timeout": 3600.0, "idle_timeout": 86_400.0, "body_timeout": 3600.0}
        self.tested = HttpListener(self.front, self, Settings(**(long | settings)), Turns())
        self.tested.start(Budget(1 << 25), self.socket)

    async def front(self, scope: RequestScope, request: Request) -> None:
        if scope.path == "/slow":
            self.slow[scope.client] = 0
            await request()
            await self.goes_on.wait()
        body = bytes(16 << 20) if scope.path == "/large" else b"here"
        request.response_bytes(200, [], body)

    def slow_clients(self, seconds: float) -> set[str]:
        return set(self.slow)

    def give_way(self, client: str) -> None:
        self.gave_way.append(client)
        del self.slow[client]

    def connect(self) -> socket.socket:
        client = self._stack.enter_context(socket.socket())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        client.settimeout(SECONDS)
        client.connect(self.address)
        client.setblocking(False)
        self.clients.append(client)
        return client

    async def ask(self, client: socket.socket, content: bytes = REQUEST) -> bytes:
        """The first bytes that come back; empty if the connection ends."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, content)
        try:
            return await loop.sock_recv(client, 65536)
        except ConnectionError:
            return b""

    async def is_closed(self, client: socket.socket) -> bool:
        """Whether the server has ended its side."""
        await asyncio.sleep(0.02)
        try:
            return client.recv(100) == b""
        except BlockingIOError:
            return False
        except ConnectionError:
            return True


def with_port(
    **settings: Any,
) -> Callable[[Callable[[Port], Coroutine[Any, Any, None]]], Callable[[], None]]:
    def wrap(test: Callable[[Port], Coroutine[Any, Any, None]]) -> Callable[[], None]:
        @functools.wraps(test)
        def run() -> None:
            async def main() -> None:
                with contextlib.ExitStack() as stack:
                    port = Port(stack, **settings)
                    await asyncio.wait_for(test(port), SECONDS)
                    for client in port.clients:
                        client.close()
                    port.goes_on.set()
                    await port.tested.stop()

            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(main())

        # pytest would take the parameter of the wrapped function for a fixture.
        del run.__wrapped__  # type: ignore[attr-defined]
        return run

    return wrap


@with_port()
async def test_many_clients_are_answered(port: Port) -> None:
    clients = [port.connect() for _ in range(200)]
    for client in clients * 2:
        answer = await port.ask(client)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"here")


@with_port(max_connections=4)
async def test_newcomers_wait_until_a_place_is_free(port: Port) -> None:
    port.slow_clients = lambda seconds: set()  # type: ignore[method-assign]
    holders = [port.connect() for _ in range(4)]
    busy = [asyncio.create_task(port.ask(each, SLOW + bytes(9))) for each in holders]
    newcomer = port.connect()
    asking = asyncio.create_task(port.ask(newcomer))
    await asyncio.sleep(0.3)
    assert not asking.done()
    port.goes_on.set()
    assert all([(await each).endswith(b"here") for each in busy])
    holders[0].close()
    assert (await asking).endswith(b"here")


@pytest.mark.parametrize("content", [b"", b"GET /", REQUEST, LARGE, LAST])
def test_at_the_limit_the_idlest_make_room(content: bytes) -> None:
    @with_port(max_connections=4)
    async def scenario(port: Port) -> None:
        holders = [port.connect() for _ in range(4)]
        for holder in holders:
            await asyncio.get_running_loop().sock_sendall(holder, content)
        assert (await port.ask(port.connect())).endswith(b"here")

    scenario()


@with_port(max_connections=4)
async def test_slow_bodies_keep_half_of_the_places(port: Port) -> None:
    holders = [port.connect() for _ in range(4)]
    for holder in holders:
        await asyncio.get_running_loop().sock_sendall(holder, SLOW)
    while len(port.slow) < 4:
        await asyncio.sleep(0.01)
    waiting = [port.connect() for _ in range(8)]
    while not port.gave_way:
        await asyncio.sleep(0.01)
    assert len(port.gave_way) <= 2
    del waiting


@with_port(header_timeout=0.2)
async def test_a_head_has_its_time(port: Port) -> None:
    clients = [port.connect() for _ in range(3)]
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(clients[1], b"GET / HT")
    assert await port.ask(clients[2])
    for client in clients:
        while not await port.is_closed(client):
            pass


@with_port(header_timeout=0.2)
async def test_a_head_that_trickles_has_no_more_time(port: Port) -> None:
    client = port.connect()
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while True:
            await loop.sock_sendall(client, b"\r\n")
            await asyncio.sleep(0.05)


@with_port(header_timeout=0.2)
async def test_a_request_may_take_longer_than_its_head(port: Port) -> None:
    client = port.connect()
    asking = asyncio.create_task(port.ask(client, SLOW + bytes(9)))
    await asyncio.sleep(0.6)
    port.goes_on.set()
    assert (await asking).endswith(b"here")


@with_port(body_timeout=0.4)
async def test_who_does_not_read_an_answer_is_cut_off(port: Port) -> None:
    client = port.connect()
    await asyncio.get_running_loop().sock_sendall(client, LARGE)
    while port.tested._connections or port.tested._joining:
        await asyncio.sleep(0.05)


@with_port()
async def test_a_stop_ends_what_is_idle_and_waits_for_what_is_not(port: Port) -> None:
    idle, busy, half = port.connect(), port.connect(), port.connect()
    assert await port.ask(idle)
    asking = asyncio.create_task(port.ask(busy, SLOW + bytes(9)))
    await asyncio.get_running_loop().sock_sendall(half, b"GET /")
    while not port.slow:
        await asyncio.sleep(0.01)
    stopping = asyncio.create_task(port.tested.stop())
    for client in (idle, half):
        while not await port.is_closed(client):
            pass
        client.close()
    with pytest.raises(ConnectionError):
        port.connect()
    assert not stopping.done()
    port.goes_on.set()
    assert (await asking).endswith(b"here")
    busy.close()
    await stopping


@with_port()
async def test_those_who_left_are_waited_for(port: Port) -> None:
    client = port.connect()
    assert await port.ask(client)
    port.tested.accept_no_more()
    waiting = asyncio.create_task(port.tested.wait_until_none(3600, lambda: False))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    client.close()
    await waiting
    other = port.connect()  # it waits in the socket's queue, for a successor
    await port.tested.wait_until_none(3600, lambda: False)
    assert not await port.is_closed(other)
    port.tested.start(Budget(1 << 25), port.socket)
    assert await port.ask(other)
    await port.tested.wait_until_none(3600, lambda: True)
    await port.tested.wait_until_none(0, lambda: False)


@with_port()
async def test_an_accept_that_fails_is_tried_again(port: Port) -> None:
    class Failing:
        """A listening socket whose first accepts fail."""

        def __init__(self, inner: socket.socket) -> None:
            self.inner = inner
            self.failures = [OSError(24, "Too many open files"), ConnectionAbortedError(103, "")]

        def accept(self) -> Any:
            if self.failures:
                raise self.failures.pop()
            return self.inner.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    failing: Any = Failing(port.socket)
    port.tested.accept_no_more()
    port.tested.start(Budget(1 << 25), failing)
    assert await port.ask(port.connect())
    assert not failing.failures
    assert isinstance(port.tested, HttpListener)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_port_is_opened_where_no_socket_is_given(host: str) -> None:
    async def main() -> None:
        with contextlib.ExitStack() as stack:
            free = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            number = free.getsockname()[1]
            free.close()
            port = Port(stack)
            tested = HttpListener(port.front, port, Settings(host=host, http_port=number), Turns())
            tested.start(Budget(1 << 25))
            assert tested._listener is not None
            bound = tested._listener.getsockname()[0]
            assert bound == ("127.0.0.1" if host == "localhost" else host)
            client = stack.enter_context(socket.create_connection(("127.0.0.1", number)))
            client.setblocking(False)
            assert await port.ask(client)
            await tested.stop()
            await port.tested.stop()

    asyncio.run(asyncio.wait_for(main(), SECONDS))


# HTTP/2.

SETTINGS = b"\0\0\0\4\0\0\0\0\0"


class Http2:
    """A client of HTTP/2."""

    def __init__(self, port: Port) -> None:
        self.socket = port.connect()
        self.port = self.socket.getsockname()[1]
        self._h2 = h2.connection.H2Connection()
        self._h2.initiate_connection()
        self.events: list[type[h2.events.Event]] = []

    async def send(self, path: str = "/a", body: bytes = b"") -> None:
        """Begin a request; with a body, it is a POST whose end does not come."""
        stream = self._h2.get_next_available_stream_id()
        names = (":method", ":path", ":scheme", ":authority")
        values = ("POST" if body else "GET", path, "http", "h")
        self._h2.send_headers(stream, list(zip(names, values, strict=True)), end_stream=not body)
        if body:
            self._h2.send_data(stream, body)
        await self._flush()

    async def open_window(self, stream: int, size: int) -> None:
        self._h2.increment_flow_control_window(size, stream)
        self._h2.increment_flow_control_window(size)
        await self._flush()

    async def _flush(self) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, self._h2.data_to_send())

    async def until(self, kind: type[h2.events.Event] | None) -> None:
        """Take what comes, until an event of a kind, or the end of the connection."""
        while kind not in self.events:
            try:
                content = await asyncio.get_running_loop().sock_recv(self.socket, 65_536)
            except ConnectionError:
                content = b""
            if not content:
                assert kind is None
                return
            try:
                self.events += [type(event) for event in self._h2.receive_data(content)]
            except h2.exceptions.ProtocolError:  # for h2, nothing may follow a GOAWAY
                self.events.append(h2.events.ConnectionTerminated)
            with contextlib.suppress(ConnectionError):
                await self._flush()

    async def ask(self) -> None:
        """Get an answer."""
        self.events.clear()
        await self.send()
        await self.until(h2.events.StreamEnded)


@with_port(header_timeout=0.3)
async def test_both_versions_are_spoken_and_idle_http2_stays(port: Port) -> None:
    clients = [Http2(port) for _ in range(20)]
    for client in clients * 2:
        await client.ask()
    assert (await port.ask(port.connect())).endswith(b"here")
    await asyncio.sleep(0.8)
    for client in clients:
        await client.ask()


@pytest.mark.parametrize("content", [PREFACE[:10], PREFACE, PREFACE + SETTINGS])
def test_http2_without_a_request_has_the_time_of_a_head(content: bytes) -> None:
    @with_port(header_timeout=0.2)
    async def scenario(port: Port) -> None:
        client = port.connect()
        await asyncio.get_running_loop().sock_sendall(client, content)
        while not await port.is_closed(client):
            pass

    scenario()


@with_port(idle_timeout=0.3)
async def test_idle_http2_ends_after_the_idle_timeout(port: Port) -> None:
    client = Http2(port)
    await client.ask()
    await client.until(None)


@with_port(keepalive_interval=0.1, keepalive_timeout=0.3)
async def test_http2_has_to_answer_pings(port: Port) -> None:
    silent, alive = Http2(port), Http2(port)
    await silent.ask()
    await alive.ask()
    ends = asyncio.create_task(alive.until(None))
    await asyncio.sleep(1.0)
    assert not ends.done()
    assert h2.events.PingReceived in alive.events
    while not await port.is_closed(silent.socket):
        pass
    ends.cancel()


@with_port(max_connections=4)
async def test_idle_http2_makes_room(port: Port) -> None:
    holders = [Http2(port) for _ in range(4)]
    for holder in holders:
        await holder.ask()
    assert (await port.ask(port.connect())).endswith(b"here")


@with_port(max_connections=4)
async def test_http2_whose_answers_are_hardly_read_makes_room(port: Port) -> None:
    async def take_byte_by_byte(holder: Http2) -> None:
        while True:
            await asyncio.sleep(0.1)
            await holder.open_window(1, 1)

    holders = [Http2(port) for _ in range(4)]
    for holder in holders:
        await holder.send("/large")
    trickles = [asyncio.create_task(take_byte_by_byte(holder)) for holder in holders]
    assert (await port.ask(port.connect())).endswith(b"here")
    for trickle in trickles:
        trickle.cancel()
    await asyncio.gather(*trickles, return_exceptions=True)


@with_port(max_connections=4)
async def test_http2_whose_body_is_refused_for_others_ends(port: Port) -> None:
    holders = [Http2(port) for _ in range(4)]
    for holder in holders:
        await holder.send("/slow", b"half")
    while len(port.slow) < 4:
        await asyncio.sleep(0.01)
    newcomer = asyncio.create_task(port.ask(port.connect()))
    while not port.gave_way:
        await asyncio.sleep(0.01)
    (holder,) = [each for each in holders if port.gave_way[0].endswith(f":{each.port}")]
    await holder.until(h2.events.ConnectionTerminated)
    newcomer.cancel()


@with_port()
async def test_http2_that_is_told_to_leave_loses_no_request(port: Port) -> None:
    idle, busy, late = Http2(port), Http2(port), port.connect()
    await idle.ask()
    await busy.send("/slow", b"half")
    while not port.slow:
        await asyncio.sleep(0.01)
    port.tested.retire()
    await idle.until(h2.events.ConnectionTerminated)
    await busy.until(h2.events.ConnectionTerminated)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(late, PREFACE + SETTINGS)
    goaway, answer = b"\0\0\x08\7\0\0\0\0\0\x7f\xff\xff\xff", b""
    while goaway not in answer:
        answer += await loop.sock_recv(late, 65_536)


@pytest.mark.parametrize("content", [PREFACE[:10], PREFACE, PREFACE + SETTINGS])
def test_a_stop_does_not_wait_for_mute_http2(content: bytes) -> None:
    @with_port()
    async def scenario(port: Port) -> None:
        client, ended = port.connect(), Http2(port)
        await ended.ask()
        await asyncio.get_running_loop().sock_sendall(client, content)
        await asyncio.sleep(0.1)
        await port.tested.stop()

    scenario()


@with_port()
async def test_a_stop_waits_for_the_answers_of_http2(port: Port) -> None:
    busy = Http2(port)
    await busy.send("/slow", b"half")
    while not port.slow:
        await asyncio.sleep(0.01)
    stopping = asyncio.create_task(port.tested.stop())
    await asyncio.sleep(1.5)
    assert not stopping.done()
    busy.socket.close()
    await stopping
