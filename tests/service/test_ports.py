from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator

import pytest

from service.ports import Listeners, accept_no_more, check_free, reserve
from service.settings import Settings, SettingsError
from tests.conftest import free_ports


@pytest.mark.parametrize("name", ["http_port", "grpc_port"])
def test_a_port_in_use_is_refused_even_if_it_may_be_shared(name: str) -> None:
    http, grpc = free_ports(2)
    settings = Settings(http_port=http, grpc_port=grpc)
    check_free(settings)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(("127.0.0.1", getattr(settings, name)))
        listening.listen()
        with pytest.raises(SettingsError, match=f"choose another {name}"):
            check_free(settings)


def test_a_port_with_connections_of_an_earlier_server_is_free() -> None:
    http, grpc = free_ports(2)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", http))
        listening.listen()
        client = socket.create_connection(("127.0.0.1", http))
        accepted, _ = listening.accept()
    accepted.close()  # the server closes first: its port is in TIME_WAIT for a while
    client.close()
    check_free(Settings(http_port=http, grpc_port=grpc))


@pytest.mark.parametrize("other", ["127.0.0.1", "0.0.0.0"])
def test_a_port_reserved_by_another_server_is_refused(other: str) -> None:
    http, grpc = free_ports(2)
    reserved = reserve(Settings(http_port=http, grpc_port=grpc))
    with pytest.raises(SettingsError, match="choose another http_port"):
        reserve(Settings(host=other, http_port=http, grpc_port=grpc))
    for reservation in reserved:
        reservation.close()
    check_free(Settings(host=other, http_port=http, grpc_port=grpc))


def test_the_holder_of_a_reservation_can_listen_and_gets_every_connection() -> None:
    http, grpc = free_ports(2)
    reserved = reserve(Settings(http_port=http, grpc_port=grpc))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", http))
    with socket.socket() as worker:
        worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        worker.bind(("127.0.0.1", http))
        worker.listen()
        for _ in range(20):
            socket.create_connection(("127.0.0.1", http)).close()
            worker.accept()[0].close()
    for reservation in reserved:
        reservation.close()


@pytest.fixture
def settings() -> Settings:
    http, grpc, health = free_ports(3)
    return Settings(http_port=http, grpc_port=grpc, health_port=health)


@pytest.fixture
def listeners(settings: Settings) -> Iterator[Listeners]:
    bound = Listeners.bound(settings)
    yield bound
    bound.close()


def http_of(listeners: Listeners) -> socket.socket:
    listener = listeners.get("http_port")
    assert listener is not None
    return listener


def test_the_sockets_of_workers_are_bound_and_refuse_until_one_listens(
    settings: Settings, listeners: Listeners
) -> None:
    http, grpc = free_ports(2)
    reserved = reserve(Settings(http_port=http, grpc_port=grpc))  # of another server
    for name in ("http_port", "grpc_port", "health_port"):
        address = ("127.0.0.1", getattr(settings, name))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        listener = listeners.get(name)
        assert listener is not None
        listener.listen()
        socket.create_connection(address).close()
    for each in reserved:
        each.close()


def test_workers_have_sockets_of_their_own_beside_the_reservation(settings: Settings) -> None:
    reserved = reserve(settings)
    first, second = Listeners.bound(settings), Listeners.bound(settings)
    for each in (first, second):
        http_of(each).listen()
        http_of(each).setblocking(False)
    accepted = [0, 0]
    clients = [socket.create_connection(("127.0.0.1", settings.http_port)) for _ in range(64)]
    for number, each in enumerate((first, second)):
        with contextlib.suppress(BlockingIOError):
            while True:
                http_of(each).accept()[0].close()
                accepted[number] += 1
    assert sum(accepted) == len(clients)
    assert min(accepted) > 0  # the kernel chooses; all 64 in one has a chance of 2^-63
    for client in clients:
        client.close()
    for open_still in (first, second, *reserved):
        open_still.close()


def test_ports_that_are_off_or_opened_by_grpcio_have_no_socket() -> None:
    (http,) = free_ports(1)
    bound = Listeners.bound(Settings(http_port=http, fast_grpc=False))
    assert bound.get("grpc_port") is bound.get("health_port") is None
    bound.close()


def test_a_port_that_cannot_be_bound_leaves_no_socket_open(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", settings.health_port)):
        with pytest.raises(OSError, match="in use"):
            Listeners.bound(settings)
        check_free(Settings(http_port=settings.http_port, grpc_port=settings.grpc_port))


def test_a_successor_gets_the_connections_that_wait_when_the_old_one_closes(
    settings: Settings, listeners: Listeners
) -> None:
    http_of(listeners).listen()
    http_of(listeners).setblocking(False)
    successor = listeners.duplicate()
    assert not os.get_blocking(http_of(listeners).fileno())  # the old worker would wait in accept()
    client = socket.create_connection(("127.0.0.1", settings.http_port), timeout=60)
    listeners.close()
    assert listeners.is_closed
    accepted, _ = http_of(successor).accept()
    accepted.sendall(b"served")
    assert client.recv(6) == b"served"
    for each in (accepted, client, successor):
        each.close()
    with pytest.raises(OSError, match="descriptor"):
        listeners.duplicate()


def test_an_owner_that_cannot_be_told_finds_no_connections_any_more(
    settings: Settings, listeners: Listeners
) -> None:
    """Neither by accept() nor by an event, also after it has closed its descriptor."""
    successor = listeners.duplicate()
    owner = http_of(listeners)
    owner.listen()
    owner.setblocking(False)
    address = ("127.0.0.1", settings.http_port)
    with select.epoll() as events:
        events.register(owner, select.EPOLLIN | select.EPOLLET)
        accept_no_more(owner.fileno())
        with socket.create_connection(address):
            assert events.poll(0) == []
            with pytest.raises(BlockingIOError):
                owner.accept()
            accepted, _ = http_of(successor).accept()
            accepted.close()
        owner.close()
        with socket.create_connection(address):
            assert events.poll(0) == []
            http_of(successor).accept()[0].close()
    successor.close()
