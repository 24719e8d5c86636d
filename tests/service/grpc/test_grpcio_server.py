"""grpcio as the carrier of calls, over a real channel but without models."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import hpack
import pytest

from service.access.gate import Gate, Identity
from service.core.callers import Callers
from service.core.errors import NotFound
from service.grpc import grpcio_server
from service.grpc.answering import MESSAGE_SLACK, Pipelined, Rpc, Unary
from service.grpc.grpcio_server import GrpcioServer
from service.grpc.http2 import frames
from service.settings import Settings
from tests.conftest import free_ports
from tests.service.grpc.http2.client import budget, headers, literal_block

UNARY, STREAMING = "/test.Service/Unary", "/test.Service/Streaming"
MAX_REQUEST_BYTES = 1024


async def unused(*_: object) -> None:
    raise AssertionError("the calls below are answered without a handler")


RPCS = {
    UNARY: Rpc(Unary("unary", unused), None, None),
    STREAMING: Rpc(Pipelined("streaming", unused, lambda request, error: None), None, None),
}


class Calls:
    """Answers b"fail" with NotFound and everything else with its request id and itself."""

    def __init__(self) -> None:
        self.gate: Gate | None = None
        self.deadlines: list[float | None] = []
        self.ends_with_error: list[bool] = []
        self.callers: list[str] = []
        self.traces = None
        self.server: Any = None

    def request_id(self, asked: str | None) -> str:
        return asked or "chosen"

    async def answer(
        self,
        rpc: Rpc,
        content: bytes,
        deadline: float | None,
        request_id: str,
        caller: str,
        identity: Identity | None = None,
        trace: object = None,
    ) -> bytes:
        self.callers.append(caller)
        self.deadlines.append(deadline)
        if content == b"fail":
            raise NotFound("There is no such thing.")
        return request_id.encode() + b": " + content

    async def stream(
        self,
        rpc: Rpc,
        contents: AsyncIterator[bytes],
        deadline: float | None,
        request_id: str,
        ends_with_error: bool,
        caller: str,
        identity: Identity | None = None,
        trace: object = None,
    ) -> AsyncIterator[bytes]:
        self.ends_with_error.append(ends_with_error)
        async for content in contents:
            yield await self.answer(rpc, content, deadline, request_id, caller)


def served(
    test: Callable[[grpc.aio.Channel, Calls], Awaitable[None]],
    host: str = "127.0.0.1",
    trusted_proxies: str = "",
) -> None:
    async def body() -> None:
        (port,) = free_ports(1)
        settings = Settings(
            host=host,
            grpc_port=port,
            max_request_bytes=MAX_REQUEST_BYTES,
        )
        calls: Any = Calls()
        server = GrpcioServer(RPCS, calls, settings, budget(), Callers(trusted_proxies))
        await server.start()
        try:
            target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            calls.server = server
            async with grpc.aio.insecure_channel(target) as channel:
                await test(channel, calls)
        finally:
            await server.stop(0)

    asyncio.run(body())


def test_a_unary_call_is_answered_with_its_request_id() -> None:
    async def test(channel: grpc.aio.Channel, calls: Calls) -> None:
        call = channel.unary_unary(UNARY)(b"one", metadata=(("x-request-id", "mine"),))
        assert await call == b"mine: one"
        assert ("x-request-id", "mine") in list(await call.trailing_metadata())
        assert calls.deadlines == [None]
        assert await channel.unary_unary(UNARY)(b"two") == b"chosen: two"

    served(test)


def test_a_stream_is_answered_message_by_message() -> None:
    async def test(channel: grpc.aio.Channel, calls: Calls) -> None:
        for metadata, ends_with_error in (((), False), ((("triton_grpc_error", "true"),), True)):
            answers = channel.stream_stream(STREAMING)(iter([b"one", b"two"]), metadata=metadata)
            assert [answer async for answer in answers] == [b"chosen: one", b"chosen: two"]
            assert calls.ends_with_error.pop() is ends_with_error

    served(test)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("trusts", [False, True])
def test_a_call_has_its_caller(host: str, trusts: bool) -> None:
    async def test(channel: grpc.aio.Channel, calls: Calls) -> None:
        metadata = (("x-forwarded-for", "198.51.100.1"), ("x-forwarded-for", "198.51.100.2"))
        await channel.unary_unary(UNARY)(b"one", metadata=metadata)
        answers = channel.stream_stream(STREAMING)(iter([b"two"]), metadata=metadata)
        assert [answer async for answer in answers]
        assert calls.callers == ["198.51.100.2" if trusts else host] * 2

    served(test, host, trusted_proxies=host if trusts else "")


def test_a_deadline_is_passed_on_in_the_time_of_the_loop() -> None:
    async def test(channel: grpc.aio.Channel, calls: Calls) -> None:
        start = asyncio.get_running_loop().time()
        await channel.unary_unary(UNARY)(b"one", timeout=3600)
        (deadline,) = calls.deadlines
        assert deadline is not None
        assert 3000 < deadline - start < 4200  # grpcio rounds

    served(test)


def test_an_error_ends_the_call_with_its_code() -> None:
    async def test(channel: grpc.aio.Channel, calls: Calls) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as unary:
            await channel.unary_unary(UNARY)(b"fail")
        answers = channel.stream_stream(STREAMING)(iter([b"one", b"fail"]))
        with pytest.raises(grpc.aio.AioRpcError) as stream:
            [answer async for answer in answers]
        for caught in (unary, stream):
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND
            assert caught.value.details() == "There is no such thing."

    served(test)


def test_a_stop_waits_for_calls_and_for_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpcio_server, "_LINGER_S", 0.01)

    class Endless:
        """grpcio, while a client connects and says nothing."""

        async def stop(self, grace: float) -> None:
            await asyncio.Event().wait()

    async def test(channel: grpc.aio.Channel, calls: Calls) -> None:
        real = calls.server._server
        answers = aiter(channel.stream_stream(STREAMING)(iter([b"one"])))
        assert await anext(answers) == b"chosen: one"
        assert [answer async for answer in answers] == []  # the call is over
        calls.server._server = Endless()
        await asyncio.wait_for(calls.server.stop(3600), 60)
        context = object()
        calls.server._open.add(context)
        stopping = asyncio.ensure_future(calls.server.stop(3600))
        await asyncio.sleep(0.2)
        assert not stopping.done()
        calls.server._open.discard(context)
        await asyncio.wait_for(stopping, 60)
        calls.server._server = real

    served(test)


def call_not_utf8(port: int) -> socket.socket:
    """Make a call whose path is not UTF-8."""
    block = literal_block([(":method", "POST"), (":scheme", "http"), (":authority", "x")])
    block += hpack.Encoder().encode([(b":path", b"/secret\xff", True)])
    block += literal_block([("content-type", "application/grpc"), ("te", "trailers")])
    start = frames.PREFACE + frames.frame(frames.SETTINGS, 0, 0)
    client = socket.create_connection(("127.0.0.1", port), 60)
    client.sendall(start + headers(1, block, frames.END_STREAM))
    return client


def test_a_path_that_is_not_utf_8_ends_no_other_call(caplog: pytest.LogCaptureFixture) -> None:
    """grpcio's server ends at it."""

    async def test(channel: grpc.aio.Channel, calls: Calls) -> None:
        asked: asyncio.Queue[bytes] = asyncio.Queue()

        async def requests() -> AsyncIterator[bytes]:
            while True:
                yield await asked.get()

        answers = aiter(channel.stream_stream(STREAMING)(requests()))
        for number in range(3):
            asked.put_nowait(b"one")
            assert await anext(answers) == b"chosen: one"
            ended, port = calls.server._server, calls.server._settings.grpc_port
            with call_not_utf8(port):
                while calls.server._server is ended:
                    await asyncio.sleep(0.01)
                asked.put_nowait(b"two")
                assert await anext(answers) == b"chosen: two", number
                async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as other:
                    unary = other.unary_unary(UNARY)(b"three", wait_for_ready=True)
                    assert await unary == b"chosen: three"

    served(test)
    assert caplog.text.count("grpcio ended by itself") == 1


@pytest.mark.parametrize(
    ("path", "content", "code"),
    [
        ("/test.Service/Nothing", b"", grpc.StatusCode.UNIMPLEMENTED),
        (
            UNARY,
            bytes(2 * (MAX_REQUEST_BYTES + MESSAGE_SLACK) + 1),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        ),
    ],
)
def test_grpcio_itself_refuses_unknown_methods_and_huge_messages(
    path: str, content: bytes, code: grpc.StatusCode
) -> None:
    async def test(channel: grpc.aio.Channel, calls: Calls) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(path)(content)
        assert caught.value.code() == code
        assert calls.deadlines == []

    served(test)
