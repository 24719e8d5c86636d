from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from service.access.origins import Origins
from service.http import health_port
from service.http.health_port import PATHS, HealthPort
from tests.conftest import free_ports
from tests.service.composition import Operations, http_app_of
from tests.service.linear_model import publish_linear, run_with_operations

SECONDS = 120  # within which everything here happens


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """The port under test, and connections to it."""

    def __init__(self, port: int, operations: Operations) -> None:
        self.port = port
        self.operations = operations

    async def connect(self, content: bytes = b"") -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(content)
        self._keep = [*getattr(self, "_keep", []), writer]  # a forgotten one would be closed
        return reader

    async def ask(self, content: bytes) -> Answer:
        return answer_of(await until_end(await self.connect(content)))

    async def get(self, path: str, method: str = "GET") -> Answer:
        return await self.ask(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


async def until_end(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.read(), SECONDS)


def answer_of(content: bytes) -> Answer:
    head, _, body = content.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert headers["connection"] == "close"
    return Answer(int(status.split(" ")[1]), headers, body)


def with_port(
    root: Path,
    scenario: Callable[[Client], Awaitable[None]],
    origins: Origins | None = None,
) -> None:
    publish_linear(root)

    async def main(operations: Operations) -> None:
        (port,) = free_ports(1)
        served = HealthPort(http_app_of(operations), "127.0.0.1", port, origins=origins)
        served.start()
        await scenario(Client(port, operations))
        served.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))

    run_with_operations(root, main)


def test_nothing_is_answered_before_another_port_is_open(tmp_path: Path) -> None:
    publish_linear(tmp_path)

    async def main(operations: Operations) -> None:
        port, late = free_ports(2)
        served = HealthPort(http_app_of(operations), "127.0.0.1", port)
        served.start(after=("127.0.0.1", late))
        asked = asyncio.create_task(Client(port, operations).get("/v2/health/ready"))
        await asyncio.wait([asked], timeout=0.2)
        assert not asked.done()
        other = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", late)
        assert (await asked).status == 200
        other.close()
        served.stop()

    run_with_operations(tmp_path, main)


def test_a_port_that_is_stopped_before_another_is_open_stays_closed(tmp_path: Path) -> None:
    publish_linear(tmp_path)

    async def main(operations: Operations) -> None:
        port, late = free_ports(2)
        served = HealthPort(http_app_of(operations), "127.0.0.1", port)
        served.start(after=("127.0.0.1", late))
        served.stop()
        other = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", late)
        assert served._opening is not None
        await served._opening
        other.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))

    run_with_operations(tmp_path, main)


def test_web_pages_of_others_and_other_names_are_refused(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        line = b"GET /metrics HTTP/1.1\r\n"
        for headers, expected in (
            (b"Host: 127.0.0.1:8002\r\n", 200),
            (b"", 200),
            (b"host:evil.example\r\n", 403),
            (b"Host: 127.0.0.1\r\nORIGIN: http://evil.example\r\n", 403),
        ):
            answer = await client.ask(line + headers + b"\r\n")
            assert answer.status == expected, headers
            assert answer.headers["x-content-type-options"] == "nosniff"

    with_port(tmp_path, scenario, Origins(checks_hosts=True))


def test_probes_and_scrapes_are_answered(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        for path in PATHS:
            answer = await client.get(path)
            assert answer.status == 200
            assert int(answer.headers["content-length"]) == len(answer.body) > 0
            head = await client.get(path + "?x=1", "HEAD")
            assert (head.status, head.body) == (200, b"")
            assert head.headers.keys() == answer.headers.keys()
        assert json.loads((await client.get(PATHS[0])).body) == {"live": True}
        assert b"mnist_request_seconds" in (await client.get("/metrics")).body
        client.operations.inference.stopping = True
        answer = await client.get("/v2/health/ready")
        assert answer.status == 503
        assert json.loads(answer.body)["reason"] == "The server is stopping."
        assert (await client.get("/v2/health/live")).status == 200

    with_port(tmp_path, scenario)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /v2/health/live HTTP/1.0\n\n", 200),
        (b"GET /v2/health/live HTTP/1.1\r\n\xff\0: \x80\r\n\r\n", 200),
        (b"GET /v2/health/live HTTP/1.1\r\nContent-Length: 9\r\n\r\nGET / HTTP", 200),
        (b"GET /v2/health/live HTTP/1.1\r\n\r\nGET /v2/health/live HTTP/1.1\r\n\r\n", 200),
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
        (b"GET /predict HTTP/1.1\r\n\r\n", 404),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET http://x/metrics HTTP/1.1\r\n\r\n", 404),
        (b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\n\r\n", 404),
        (b"GET  /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET /\xc3\xa9 HTTP/1.1\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"\0" * 9000, 400),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 20_000, 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, request_bytes: bytes, status: int) -> None:
    async def scenario(client: Client) -> None:
        answer = await client.ask(request_bytes)
        assert answer.status == status
        body = json.loads(answer.body)
        assert body == {"live": True} if status == 200 else len(body["error"]) < 400
        assert ("allow" in answer.headers) == (status == 405)

    with_port(tmp_path, scenario)


@pytest.mark.parametrize(
    "half", [b"", b"G", b"GET /metrics HTTP/1.1\r\nX: y\r\n"], ids=["nothing", "letter", "headers"]
)
def test_connections_that_send_no_request_make_room_for_one_that_does(
    tmp_path: Path, half: bytes
) -> None:
    async def scenario(client: Client) -> None:
        held = [await client.connect(half) for _ in range(3 * health_port._MAX_CONNECTIONS)]
        for path in PATHS * 2:
            assert (await client.get(path)).status == 200
        # The oldest were closed for the others; nothing was sent to them.
        for reader in held[: -health_port._MAX_CONNECTIONS]:
            try:
                assert await until_end(reader) == b""
            except ConnectionResetError:  # closed with unread bytes
                continue
        assert not held[-1].at_eof()

    with_port(tmp_path, scenario)


def test_clients_that_do_not_read_make_room_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = bytes(20_000_000)  # more than the buffers of a connection hold

    async def scenario(client: Client) -> None:
        async def never_sent(port: HealthPort, request: bytes) -> bytes:
            return large

        with monkeypatch.context() as patch:
            patch.setattr(HealthPort, "_answer", never_sent)
            for _ in range(health_port._MAX_CONNECTIONS):
                reader = await client.connect(b"GET /metrics HTTP/1.1\r\n\r\n")
                assert await asyncio.wait_for(reader.readexactly(1), SECONDS)
        assert (await client.get("/v2/health/live")).status == 200

    with_port(tmp_path, scenario)


@pytest.mark.parametrize("half", [b"", b"GET /metrics HTTP/1.1\r\n"])
def test_a_request_that_does_not_come_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bytes
) -> None:
    monkeypatch.setattr(health_port, "_REQUEST_S", 0.05)

    async def scenario(client: Client) -> None:
        assert await until_end(await client.connect(half)) == b""

    with_port(tmp_path, scenario)


def test_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for content in (b"", b"x", b"GET /metrics HTTP/1.1\r\n\r\n") * 20:
            _, writer = await asyncio.open_connection("127.0.0.1", client.port)
            writer.write(content)
            writer.close()
        while len(list(Path("/proc/self/fd").iterdir())) > before:  # a hang if some stay open
            await asyncio.sleep(0.01)

    with_port(tmp_path, scenario)
