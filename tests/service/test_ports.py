from __future__ import annotations

import socket

import pytest

from service.ports import check_free, reserve
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
