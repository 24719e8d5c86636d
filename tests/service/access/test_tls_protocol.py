"""TLS under a connection, on bytes: OpenSSL's client on one side, a transport that remembers."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.access.tls import Tls
from service.access.tls_protocol import TlsProtocol
from service.core.callers import Callers
from service.core.turns import Turns
from service.grpc.http2 import frames, listener
from service.grpc.http2.limits import Limits
from service.grpc.http2.listener import Http2Protocol
from service.grpc.http2.pool import Pool
from service.settings import Settings
from tests.certificates import Authority, Files
from tests.service.grpc.http2.client import LIMITS, RPCS, START, answer, budget, call, goaway
from tests.service.grpc.http2.client import message as framed
from tests.service.grpc.http2.test_listener import Calls, Transport, echo, in_loop, stop_of, turns

EVERYTHING = 1 << 20


@pytest.fixture
def no_time_to_confirm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_LINGER_S", 0.0)


class Ours(Transport):
    """A transport that closes as a real one does."""

    def close(self) -> None:
        self.actions.append("close")
        self.closing = True

    def abort(self) -> None:
        self.actions.append("abort")
        self.closing = True


class Secure:
    """A server's connection with a client that has not said anything yet."""

    authority: Authority
    files: Files
    client_files: Files

    def __init__(
        self,
        *,
        asks: str = "none",
        alpn: tuple[str, ...] = ("h2",),
        certificate: Files | None = None,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        limits: Limits = LIMITS,
    ) -> None:
        ca = str(self.authority.ca) if asks != "none" else ""
        settings: Any = {"tls_client_auth": asks, "tls_client_ca": ca}
        tls = Tls(
            Settings(
                tls_certificate=str(self.files.certificate),
                tls_key=str(self.files.key),
                **settings,
            )
        )
        context = ssl.create_default_context(cafile=self.authority.ca)
        context.minimum_version = context.maximum_version = version
        if alpn:
            context.set_alpn_protocols(alpn)
        if certificate:
            context.load_cert_chain(*certificate)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = context.wrap_bio(self._in, self._out, server_hostname="localhost")
        self.transport = Ours()
        self.pool = Pool(max_connections=2, max_calls=1000, silence=60.0, budget=budget())
        calls: Any = Calls(echo)

        async def inflate(content: bytes, encoding: str) -> bytes:
            raise AssertionError

        self.inner = Http2Protocol(
            rpcs=RPCS,
            calls=calls,
            limits=limits,
            inflate=inflate,
            connections=set(),
            pool=self.pool,
            callers=Callers(),
            turns=Turns(),
        )
        self.server = TlsProtocol(
            tls.context("h2"), self.inner, ("h2",), memoryview(bytearray(1024))
        )
        tls.close()
        self.server.connection_made(self.transport)

    def pass_on(self, at_most: int = EVERYTHING) -> None:
        """Give the server what the client has sent, in pieces, and the client the answer."""
        sent = self._out.read()
        for start in range(0, len(sent), at_most):
            self.server.data_received(sent[start : start + at_most])
        self._in.write(self.transport.output)
        self.transport.writes.clear()

    async def shake_hands(self, at_most: int = EVERYTHING) -> None:
        for _ in range(4):
            with contextlib.suppress(ssl.SSLWantReadError):
                self.client.do_handshake()
            self.pass_on(at_most)
            await turns()
        self._in.write(self.transport.output)
        self.transport.writes.clear()

    def received(self) -> bytes:
        """What the client has read until now."""
        self._in.write(self.transport.output)
        self.transport.writes.clear()
        output = bytearray()
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            while part := self.client.read(EVERYTHING):
                output += part
        return bytes(output)


@pytest.fixture(autouse=True, scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    Secure.authority = authority = Authority(tmp_path_factory.mktemp("authority"))
    Secure.files = authority.server()
    Secure.client_files = authority.issue("client", "client.example", common_name="somebody")
    return


async def opened(**more: Any) -> Secure:
    secure = Secure(**more)
    await secure.shake_hands()
    return secure


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("at_most", [1, 100, EVERYTHING])
def test_a_call_is_answered_however_its_bytes_arrive(version: ssl.TLSVersion, at_most: int) -> None:
    @in_loop
    async def body() -> None:
        secure = Secure(version=version)
        await secure.shake_hands(at_most)
        assert secure.client.version() == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]
        assert secure.client.selected_alpn_protocol() == "h2"
        secure.client.write(START + call(1, b"one"))
        secure.pass_on(at_most)
        await turns()
        assert answer(secure.received(), 1)[1] == framed(b"answer to one")

    body()


@in_loop
async def test_large_answers_take_many_records() -> None:
    secure = await opened(limits=LIMITS._replace(max_message=20_000))
    content = b"x" * 15_000
    secure.client.write(START)
    for stream_id in (1, 3, 5):
        secure.client.write(call(stream_id, content))
    secure.pass_on()
    await turns()
    output = secure.received()
    for stream_id in (1, 3, 5):
        assert answer(output, stream_id)[1] == framed(b"answer to " + content)


@in_loop
async def test_a_connection_has_its_place_before_the_handshake_and_loses_it_in_time() -> None:
    secure = Secure(limits=LIMITS._replace(header_timeout=0.05))
    assert len(secure.pool) == 1
    while not secure.transport.closing:  # the preface has not come
        await asyncio.sleep(0.01)
    assert secure.transport.output == b""
    secure.server.connection_lost(None)
    assert len(secure.pool) == 0


@in_loop
async def test_half_a_handshake_loses_its_place_in_time() -> None:
    secure = Secure(limits=LIMITS._replace(header_timeout=0.05))
    with contextlib.suppress(ssl.SSLWantReadError):
        secure.client.do_handshake()
    secure.pass_on()
    while not secure.transport.closing:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        START,
        b"\x00" * 100,
        b"\x16\x03\x01\xff\xff" + b"\x00" * 70_000,
        b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + b"\x00" * 20_000,
        b"\x80\x2e\x01\x00\x02" + b"\x00" * 60,  # SSL 2
    ],
    ids=["HTTP", "HTTP/2", "zeros", "long record", "long hello", "SSL 2"],
)
def test_what_is_not_tls_gets_no_answer_but_an_alert(bytes_sent: bytes) -> None:
    @in_loop
    async def body() -> None:
        secure = Secure()
        secure.server.data_received(bytes_sent)
        await turns()
        assert secure.transport.closing
        assert secure.transport.output[:1] in (b"", b"\x15")  # an alert
        assert len(secure.transport.output) < 20
        secure.server.data_received(b"more")
        secure.server.connection_lost(None)

    body()


@pytest.mark.parametrize("alpn", [(), ("http/1.1",)])
def test_a_client_that_does_not_ask_for_http2_is_refused(alpn: tuple[str, ...]) -> None:
    @in_loop
    async def body() -> None:
        secure = Secure(alpn=alpn)
        await secure.shake_hands()
        assert secure.transport.closing
        assert secure.received() == b""

    body()


def test_the_name_of_a_client_certificate_is_known() -> None:
    @in_loop
    async def body() -> None:
        for asks in ("optional", "required"):
            secure = await opened(asks=asks, certificate=Secure.client_files)
            assert secure.inner.client_name == "client.example"
        assert (await opened(asks="optional")).inner.client_name == ""

    body()


def test_a_missing_or_foreign_client_certificate_ends_the_connection(tmp_path: Path) -> None:
    other = Authority(tmp_path / "other").issue("client", "client.example")

    @in_loop
    async def body() -> None:
        for asks, certificate in (("required", None), ("required", other), ("optional", other)):
            secure = Secure(asks=asks, certificate=certificate)
            with contextlib.suppress(ssl.SSLError):
                await secure.shake_hands()
            assert secure.transport.closing
            assert secure.inner.client_name == ""

    body()


@in_loop
async def test_the_end_is_said_in_both_layers() -> None:
    secure = await opened()
    secure.inner.stop()
    await turns()
    output = secure.received()
    assert goaway(output) is not None
    assert "write_eof" in secure.transport.actions
    assert secure.client.read(1) == b""  # close_notify
    secure.client.write(START)
    secure.pass_on()  # is ignored


@in_loop
async def test_a_client_that_shakes_hands_during_a_stop_learns_that_it_must_connect_again() -> None:
    secure = Secure()
    server, stopping = stop_of(secure.inner)
    await turns()
    assert secure.transport.actions == []
    await secure.shake_hands()
    output = b""
    async with asyncio.timeout(120.0):
        while "write_eof" not in secure.transport.actions:
            await asyncio.sleep(0)
            output += secure.received()
        output += secure.received()
        server._connections.discard(secure.inner)
        await stopping
    assert goaway(output) == (frames.NO_ERROR, "the server is stopping")


@pytest.mark.usefixtures("no_time_to_confirm")
@in_loop
async def test_a_client_that_shakes_no_hands_holds_a_stop_for_a_second_at_most() -> None:
    secure = Secure()
    server, stopping = stop_of(secure.inner)
    async with asyncio.timeout(120.0):
        while not secure.transport.closing:
            await asyncio.sleep(0)
        server._connections.discard(secure.inner)
        await stopping


@in_loop
async def test_close_notify_of_the_client_ends_the_connection() -> None:
    secure = await opened()
    with contextlib.suppress(ssl.SSLError):  # it has not read all that was sent to it
        secure.client.unwrap()
    secure.pass_on()
    assert secure.transport.closing


@in_loop
async def test_damaged_records_end_the_connection() -> None:
    secure = await opened()
    secure.client.write(START + call(1, b"one"))
    damaged = bytearray(secure._out.read())
    damaged[20] ^= 1
    secure.server.data_received(bytes(damaged))
    await turns()
    assert secure.transport.closing


@in_loop
async def test_a_client_that_reads_nothing_is_read_no_further() -> None:
    secure = await opened()
    secure.server.pause_writing()
    assert secure.transport.actions[-1] == "pause_reading"
    secure.server.resume_writing()
    await turns()
    assert secure.transport.actions[-1] == "resume_reading"


@in_loop
async def test_the_state_of_openssl_is_freed_with_the_connection() -> None:
    secure = await opened()
    state = weakref.ref(secure.server._tls)
    secure.server.connection_lost(None)
    assert state() is None


@in_loop
async def test_another_protocol_takes_over_with_what_the_handshake_has_found() -> None:
    class Successor:
        is_open = False
        client_name = ""

        def __init__(self) -> None:
            self.received = b""
            self.is_lost = False

        def data_received(self, data: bytes) -> None:
            self.received += data

        def connection_lost(self, error: Exception | None) -> None:
            self.is_lost = True

    secure = await opened(asks="required", certificate=Secure.client_files)
    successor: Any = Successor()
    secure.server.set_protocol(successor)
    assert successor.is_open
    assert successor.client_name == secure.inner.client_name == "client.example"
    secure.client.write(b"data")
    secure.pass_on()
    assert successor.received == b"data"
    secure.server.close()
    assert secure.transport.closing
    secure.server.connection_lost(None)
    assert successor.is_lost
