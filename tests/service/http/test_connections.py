from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

import pytest

from service.http import connections
from service.http.connections import Connections
from service.settings import Settings

SECONDS = 120  # within which everything here happens


class Server:
    """A listening socket, as Granian has one, and the clients that it accepted."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.address = self._listener.getsockname()

    def connect(self) -> socket.socket:
        """The client's end of a connection that waits to be accepted."""
        return self._stack.enter_context(socket.create_connection(self.address, timeout=SECONDS))

    def accept(self) -> socket.socket:
        return self._stack.enter_context(self._listener.accept()[0])

    def pair(self) -> tuple[socket.socket, socket.socket]:
        client = self.connect()
        return client, self.accept()

    def exchange(self) -> tuple[socket.socket, socket.socket]:
        """A connection on which a request was answered."""
        client, accepted = self.pair()
        client.sendall(b"request")
        assert accepted.recv(100)
        accepted.sendall(b"answer")
        assert client.recv(100)
        return client, accepted

    def settings(self, **others: float) -> Settings:
        long = {"header_timeout": 3600.0, "idle_timeout": 86_400.0}
        return Settings(http_port=self.address[1], **(long | others))  # type: ignore[arg-type]


def with_server(scenario: Callable[[Server], Awaitable[None]]) -> None:
    with contextlib.ExitStack() as stack:
        asyncio.run(scenario(Server(stack)))


def is_open(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(100) != b""
    except BlockingIOError:
        return True


async def until_closed(tested: Connections, *clients: socket.socket) -> None:
    """Look again and again: a hang if one of the clients stays connected."""
    while any(is_open(client) for client in clients):
        await tested.sweep()


def test_a_connection_that_never_sent_anything_is_closed_after_the_header_timeout() -> None:
    async def scenario(server: Server) -> None:
        silent, used = server.pair()[0], server.exchange()[0]
        await Connections(server.settings(), {}).sweep()
        assert is_open(silent)
        await until_closed(Connections(server.settings(header_timeout=0.1), {}), silent)
        assert is_open(used)

    with_server(scenario)


def test_a_connection_that_is_fed_slowly_is_closed_all_the_same() -> None:
    async def scenario(server: Server) -> None:
        client, _ = server.pair()
        tested = Connections(server.settings(header_timeout=0.1), {})
        while is_open(client):
            with contextlib.suppress(OSError):
                client.send(b"P")
            await tested.sweep()

    with_server(scenario)


def test_an_idle_connection_is_closed_and_one_with_a_request_is_not() -> None:
    async def scenario(server: Server) -> None:
        (idle, _), (busy, _) = server.exchange(), server.exchange()
        in_flight = {1: f"127.0.0.1:{busy.getsockname()[1]}"}
        limits = server.settings(idle_timeout=0.1, header_timeout=0.1)
        await until_closed(Connections(limits, in_flight), idle)
        assert is_open(busy)
        await until_closed(Connections(limits, {}), busy)

    with_server(scenario)


def test_with_tls_a_connection_without_a_request_is_closed_after_the_header_timeout() -> None:
    """A handshake has sent something to it, and it may keep sending."""

    async def scenario(server: Server) -> None:
        (silent, _), (fed, _), (used, _) = (server.exchange() for _ in range(3))
        client = f"127.0.0.1:{used.getsockname()[1]}"
        heard = {client, "127.0.0.1:1"}
        tested = Connections(server.settings(header_timeout=0.1), {}, None, heard)
        while is_open(silent) or is_open(fed):
            with contextlib.suppress(OSError):
                fed.send(b"P")
            await tested.sweep()
        assert is_open(used)
        assert heard == {client}  # the other one is no longer connected

    with_server(scenario)


def test_with_tls_a_request_in_flight_is_left_alone() -> None:
    async def scenario(server: Server) -> None:
        (busy, _), (silent, _) = server.exchange(), server.exchange()
        in_flight = {1: f"127.0.0.1:{busy.getsockname()[1]}"}
        limits = server.settings(header_timeout=0.1)
        await until_closed(Connections(limits, in_flight, None, set()), silent)
        assert is_open(busy)

    with_server(scenario)


def test_at_the_limit_the_idlest_connections_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_LEAST_IDLE_S", 0.05)

    async def scenario(server: Server) -> None:
        clients = [server.exchange() for _ in range(4)]
        tested = Connections(server.settings(max_connections=4), {})
        watching = asyncio.create_task(tested.watch())
        (first, _), (second, _), (third, _), (fourth, accepted) = clients
        for _ in range(20):  # the fourth is in use, and no newcomer waits
            fourth.setblocking(True)
            fourth.sendall(b"request")
            accepted.recv(100)
            accepted.sendall(b"answer")
            fourth.recv(100)
            await asyncio.sleep(0.01)
        assert all(is_open(client) for client, _ in clients)
        server.connect()
        while sum(is_open(client) for client in (first, second, third)) > 2:
            await asyncio.sleep(0.01)
        server.accept()
        assert is_open(fourth)
        watching.cancel()

    with_server(scenario)


def test_below_the_limit_nothing_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_LEAST_IDLE_S", 0)

    async def scenario(server: Server) -> None:
        client, _ = server.exchange()
        tested = Connections(server.settings(max_connections=2), {})
        await asyncio.sleep(0.01)
        await tested.sweep(newcomers=1)
        assert is_open(client)
        await Connections(server.settings(max_connections=1), {}).sweep(newcomers=1)
        assert not is_open(client)

    with_server(scenario)


def test_a_descriptor_that_now_belongs_to_another_connection_is_left_alone() -> None:
    async def scenario(server: Server) -> None:
        client, accepted = server.exchange()
        (seen,) = Connections(server.settings(), {})._scan()
        accepted.close()
        client.close()
        other, again = server.exchange()
        assert again.fileno() == seen.descriptor
        assert not connections._close(seen)
        assert is_open(other)

    with_server(scenario)


def test_the_wait_for_the_last_connection_ends_with_it_or_when_it_is_told_to() -> None:
    async def scenario(server: Server) -> None:
        tested = Connections(server.settings(), {})
        client, accepted = server.exchange()
        waiting = asyncio.create_task(tested.wait_until_none(3600, lambda: False))
        done, _ = await asyncio.wait([waiting], timeout=0.3)
        assert not done
        for each in (client, accepted):
            each.close()
        await asyncio.wait_for(waiting, SECONDS)
        server.exchange()
        await asyncio.wait_for(tested.wait_until_none(3600, lambda: True), SECONDS)
        await asyncio.wait_for(tested.wait_until_none(0, lambda: False), SECONDS)

    with_server(scenario)


def test_sockets_of_other_ports_are_not_looked_at() -> None:
    async def scenario(server: Server) -> None:
        server.exchange()
        with contextlib.ExitStack() as stack:
            other = Server(stack)
            assert Connections(other.settings(), {})._scan() == []

    with_server(scenario)


class Arriving:
    """Bodies of these clients arrive slowly."""

    def __init__(self, clients: list[socket.socket]) -> None:
        self.clients = {f"127.0.0.1:{client.getsockname()[1]}" for client in clients}
        self.refused: list[int] = []

    def slow_clients(self, seconds: float) -> set[str]:
        return self.clients

    def give_way(self, client: str) -> None:
        self.refused.append(int(client.rpartition(":")[2]))


@pytest.mark.parametrize(("newcomers", "refused"), [(0, 0), (1, 1), (9, 3)])
def test_slow_bodies_keep_half_of_the_places_those_that_moved_last(
    newcomers: int, refused: int
) -> None:
    async def scenario(server: Server) -> None:
        clients = []
        for _ in range(5):
            clients.append(server.exchange()[0])
            await asyncio.sleep(0.02)  # the kernel's clock has milliseconds
        bodies = Arriving(clients)
        in_flight = dict(enumerate(bodies.clients))
        tested = Connections(server.settings(max_connections=5), in_flight, bodies)
        await tested.sweep(newcomers)
        assert bodies.refused == [c.getsockname()[1] for c in clients[:refused]][::-1]
        assert all(is_open(client) for client in clients)  # they end with their answers
        await Connections(server.settings(max_connections=6), in_flight, bodies).sweep(newcomers)
        assert len(bodies.refused) == refused

    with_server(scenario)
