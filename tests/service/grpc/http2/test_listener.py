"""The asyncio side of a connection, on a transport that only remembers."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any
from unittest.mock import patch

import pytest

from service.access.gate import Gate
from service.core.budget import SWEEP_S
from service.core.callers import Callers
from service.core.errors import InternalError, NotFound, Overloaded, Unavailable
from service.core.turns import PER_TURN, Turns
from service.grpc.http2 import frames
from service.grpc.http2.limits import Limits
from service.grpc.http2.listener import Http2Protocol, Http2Server
from service.grpc.http2.pool import Pool
from service.settings import Settings
from tests.service.grpc.http2.client import (
    LIMITS,
    RPCS,
    START,
    STREAMING,
    UNARY,
    answer,
    block,
    budget,
    call,
    data,
    goaway,
    headers,
    kinds,
    message,
    sent,
)

TURNS = 20  # of the event loop: more than any call here takes


class Transport:
    """What the protocol has done to its socket."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.actions: list[str] = []
        self.closing = False
        self.unwritten = 0  # bytes that the kernel did not take
        self.peer = ("10.0.0.1", 50000)

    @property
    def output(self) -> bytes:
        return b"".join(self.writes)

    def write(self, content: bytes) -> None:
        assert "write_eof" not in self.actions
        self.writes.append(content)

    def get_write_buffer_size(self) -> int:
        return self.unwritten

    def is_closing(self) -> bool:
        return self.closing

    def get_extra_info(self, name: str) -> tuple[str, int] | None:
        return self.peer if name == "peername" else None

    def can_write_eof(self) -> bool:
        return True

    def __getattr__(self, action: str) -> Callable[[], None]:
        return lambda: self.actions.append(action)


class Calls:
    """Answers calls like `service.grpc.answering.Calls`, as the test tells it."""

    def __init__(self, reply: Callable[[bytes], Awaitable[bytes]]) -> None:
        self._reply = reply
        self.gate: Gate | None = None
        self.ended: list[str] = []
        self.overloaded: set[object] = set()
        self.refusal: Overloaded | None = None
        self.traces = None
        self.callers: list[object] = []

    def request_id(self, asked: str | None) -> str:
        return asked or "chosen"

    def early_refusal(self, *_: object) -> Overloaded | None:
        return self.refusal

    async def answer(self, _rpc: object, content: bytes, *context: object) -> bytes:
        self.callers.append(context[2])
        try:
            return await self._reply(content)
        finally:
            self.ended.append("answer")

    async def stream(
        self, _rpc: object, messages: AsyncIterator[bytes], **context: object
    ) -> AsyncIterator[bytes]:
        self.callers.append(context["caller"])
        async for content in messages:
            yield await self._reply(content)


async def echo(content: bytes) -> bytes:
    return b"answer to " + content


async def never(content: bytes) -> bytes:
    return await asyncio.get_running_loop().create_future()


class Peer:
    """A protocol that has received the preface of its client."""

    def __init__(
        self,
        reply: Callable[[bytes], Awaitable[bytes]] = echo,
        limits: Limits = LIMITS,
        turns: Turns | None = None,
    ) -> None:
        self.calls = Calls(reply)
        self.connections: set[Http2Protocol] = set()
        self.turns = turns or Turns()
        self.pool = Pool(max_connections=1, max_calls=1000, silence=60.0, budget=budget())
        self.transport = Transport()
        self.protocol = self.connect(self.transport, limits)
        self.protocol.data_received(START)

    def connect(self, transport: Transport, limits: Limits = LIMITS) -> Http2Protocol:
        async def inflate(content: bytes, encoding: str) -> bytes:
            return f"{encoding} of ".encode() + content

        calls: Any = self.calls
        protocol = Http2Protocol(
            rpcs=RPCS,
            calls=calls,
            limits=limits,
            inflate=inflate,
            connections=self.connections,
            pool=self.pool,
            callers=Callers("10.0.0.1"),
            turns=self.turns,
        )
        protocol.connection_made(transport)
        return protocol

    async def send(self, content: bytes) -> None:
        self.protocol.data_received(content)
        await turns()


async def turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test on an event loop on which nothing is left at its end."""

    def run() -> None:
        async def body() -> None:
            await test()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run(body())

    run.__name__ = test.__name__
    return run


@in_loop
async def test_answers_of_one_turn_are_written_at_once() -> None:
    peer = Peer()
    await turns()
    peer.transport.writes.clear()
    await peer.send(call(1, b"one") + call(3, b"two"))
    (output,) = peer.transport.writes
    assert answer(output, 1)[1] == message(b"answer to one")
    assert answer(output, 3)[1] == message(b"answer to two")


@in_loop
async def test_a_streaming_call_answers_message_by_message() -> None:
    peer = Peer()
    await peer.send(headers(1, block(STREAMING)) + data(1, message(b"one")))
    assert answer(peer.transport.output, 1)[1] == message(b"answer to one")
    await peer.send(data(1, message(b"two"), end=True))
    fields, content = answer(peer.transport.output, 1)
    assert content == message(b"answer to one") + message(b"answer to two")
    assert fields["grpc-status"] == "0"
    assert peer.protocol._inboxes == peer.protocol._tasks == {}


@pytest.mark.parametrize("path", [UNARY, STREAMING])
def test_a_call_has_its_caller(path: str) -> None:
    @in_loop
    async def test() -> None:
        forwarded = block(path, {"x-forwarded-for": "198.51.100.7"})
        for address, caller in (("10.0.0.1", "198.51.100.7"), ("10.0.0.2", "10.0.0.2")):
            peer = Peer()
            peer.transport = Transport()
            peer.transport.peer = (address, 50000)
            peer.connections.clear()
            peer.protocol = peer.connect(peer.transport)
            await peer.send(START + call(1, b"one", forwarded) + call(3, b"two", block(path)))
            assert peer.calls.callers == [caller, address]

    test()


@pytest.mark.parametrize("path", [UNARY, STREAMING])
def test_a_compressed_message_is_decompressed(path: str) -> None:
    @in_loop
    async def test() -> None:
        peer = Peer()
        header_block = block(path, {"grpc-encoding": "gzip"})
        await peer.send(headers(1, header_block) + data(1, message(b"one", flag=1), end=True))
        assert answer(peer.transport.output, 1)[1] == message(b"answer to gzip of one")

    test()


@pytest.mark.parametrize("path", [UNARY, STREAMING])
@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (NotFound("There is no such thing."), "5", "There is no such thing."),
        (Unavailable("The server is stopping."), "14", "The server is stopping."),
        (InternalError("known"), "13", "known"),
    ],
)
def test_an_error_ends_the_call_with_its_code(
    path: str, error: Exception, status: str, text: str
) -> None:
    @in_loop
    async def test() -> None:
        async def fail(content: bytes) -> bytes:
            raise error

        peer = Peer(fail)
        await peer.send(call(1, b"", block(path)))
        fields, _ = answer(peer.transport.output, 1)
        assert (fields["grpc-status"], fields["grpc-message"]) == (status, text)

    test()


@pytest.mark.parametrize("path", [UNARY, STREAMING])
def test_an_unexpected_error_is_logged_and_answered_as_internal(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    @in_loop
    async def test() -> None:
        async def fail(content: bytes) -> bytes:
            raise ZeroDivisionError("a detail that the client must not see")

        peer = Peer(fail)
        await peer.send(call(1, b"", block(path, {"x-request-id": "mine"})))
        fields, _ = answer(peer.transport.output, 1)
        assert fields["grpc-status"] == "13"
        assert fields["grpc-message"].endswith("under request id mine.")
        assert "detail" not in fields["grpc-message"]

    test()
    assert "ZeroDivisionError" in caplog.text


@in_loop
async def test_a_call_to_an_overloaded_model_is_refused_without_a_task_or_timer() -> None:
    peer = Peer(never)
    peer.calls.overloaded.add("a model")
    peer.calls.refusal = Overloaded.of("Too much", 2.5)
    with patch.object(peer.protocol._loop, "call_at") as timer:
        await peer.send(call(1, b"") + call(3, b"", block(UNARY, {"grpc-timeout": "9S"})))
    assert not timer.called
    for stream_id in (1, 3):
        fields, _ = answer(peer.transport.output, stream_id)
        assert fields["grpc-status"] == "14"
        assert fields["grpc-message"] == "Too much; the expected wait is 2.5 seconds."
        assert fields["grpc-retry-pushback-ms"] == "3000"
    assert not peer.calls.ended
    assert not peer.protocol._tasks
    assert not peer.protocol._timers


@in_loop
async def test_a_reset_cancels_the_work() -> None:
    peer = Peer(never)
    await peer.send(call(1, b""))
    assert peer.calls.ended == []
    await peer.send(frames.reset(1, frames.CANCEL))
    assert peer.calls.ended == ["answer"]
    assert peer.protocol._tasks == {}


@in_loop
async def test_a_call_reset_with_its_request_is_never_started() -> None:
    peer = Peer()
    stream = headers(3, block(STREAMING, {"grpc-timeout": "1H"})) + data(3, message(b""))
    await peer.send(call(1, b"") + frames.reset(1, 8) + stream + frames.reset(3, 8))
    protocol = peer.protocol
    assert protocol._tasks == protocol._timers == protocol._inboxes == {}
    assert peer.calls.ended == []


@in_loop
async def test_a_lost_connection_cancels_all_work_and_timers() -> None:
    peer = Peer(never)
    await peer.send(call(1, b"", block(UNARY, {"grpc-timeout": "1H"})))
    await peer.send(headers(3, block(UNARY, {"grpc-timeout": "1H"})))
    timers = list(peer.protocol._timers.values())
    assert len(timers) == 2
    peer.transport.closing = True
    peer.protocol.connection_lost(None)
    await turns()
    assert peer.calls.ended == ["answer"]
    assert all(timer.cancelled() for timer in timers)
    assert peer.connections == set()


@in_loop
async def test_a_deadline_that_passes_ends_the_call() -> None:
    peer = Peer(never)
    await peer.send(call(1, b"", block(UNARY, {"grpc-timeout": "0m"})))
    fields, _ = answer(peer.transport.output, 1)
    assert fields["grpc-status"] == "4"
    assert "deadline" in fields["grpc-message"]
    assert peer.protocol._tasks == peer.protocol._timers == {}


@in_loop
async def test_a_deadline_ends_a_call_whose_answer_no_window_lets_out() -> None:
    """Without it, a peer with a window of zero would fill the server with its answers."""
    peer = Peer()
    await peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
    await peer.send(call(1, b"", block(UNARY, {"grpc-timeout": "1H"})))
    assert peer.calls.ended == ["answer"]
    (timer,) = peer.protocol._timers.values()
    assert not timer.cancelled()
    peer.protocol._expire(peer.protocol._connection._streams[1])
    await turns()
    fields, content = answer(peer.transport.output, 1)
    assert (fields["grpc-status"], content) == ("4", b"")
    assert peer.protocol._connection._streams == peer.protocol._timers == {}


@in_loop
async def test_an_answer_that_waited_for_a_window_cancels_the_timer_of_its_deadline() -> None:
    peer = Peer()
    await peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
    await peer.send(call(1, b"one", block(UNARY, {"grpc-timeout": "1H"})))
    (timer,) = peer.protocol._timers.values()
    await peer.send(frames.window_update(1, 1000))
    assert answer(peer.transport.output, 1)[1] == message(b"answer to one")
    assert timer.cancelled()
    assert peer.protocol._timers == {}


@in_loop
async def test_an_answer_cancels_the_timer_of_its_deadline() -> None:
    peer = Peer()
    peer.protocol.data_received(call(1, b"", block(UNARY, {"grpc-timeout": "1H"})))
    (timer,) = peer.protocol._timers.values()
    await turns()
    assert timer.cancelled()
    assert peer.protocol._timers == {}


@in_loop
async def test_a_stream_whose_answers_wait_reads_no_further_message() -> None:
    replies = []

    async def reply(content: bytes) -> bytes:
        replies.append(content)
        return bytes(100)

    peer = Peer(reply)
    await peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 10}))
    await peer.send(headers(1, block(STREAMING)) + data(1, message(b"one") + message(b"two")))
    assert replies == [b"one"]
    await peer.send(frames.window_update(1, 10))
    assert replies == [b"one"]
    await peer.send(frames.window_update(1, 85))
    assert replies == [b"one", b"two"]
    await peer.send(frames.window_update(1, 1000) + data(1, b"", end=True))
    fields, content = answer(peer.transport.output, 1)
    assert (fields["grpc-status"], content) == ("0", message(bytes(100)) * 2)


@in_loop
async def test_a_connection_over_the_limit_gets_a_reason_and_is_not_counted() -> None:
    peer = Peer(never)
    await peer.send(call(1, b""))
    transport = Transport()
    peer.connect(transport)
    await turns()
    ended = goaway(transport.output)
    assert ended is not None
    assert "max_connections" in ended[1]
    assert transport.actions == ["write_eof"]
    assert peer.connections == {peer.protocol}


@in_loop
async def test_a_peer_that_does_not_read_is_not_read_from() -> None:
    peer = Peer()
    peer.protocol.pause_writing()
    await turns()
    assert peer.transport.actions == ["pause_reading"]
    peer.protocol.resume_writing()
    await turns()
    assert peer.transport.actions == ["pause_reading", "resume_reading"]


@pytest.mark.parametrize("size", [600 << 10, 3 << 20])
@pytest.mark.parametrize("end", ["stop", "eof_received", "retire"])
def test_a_large_answer_is_whole_when_its_connection_ends(size: int, end: str) -> None:
    content = bytes(size)

    async def reply(_: bytes) -> bytes:
        return content

    @in_loop
    async def test() -> None:
        peer = Peer(reply)
        window = frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 24})
        await peer.send(window + frames.window_update(0, 1 << 24))
        peer.protocol.data_received(call(1, b"one"))
        getattr(peer.protocol, end)()
        if end == "retire":  # the answer to its PING
            peer.protocol.data_received(frames.frame(frames.PING, frames.ACK, 0, b"leaving?"))
        await turns()
        assert answer(peer.transport.output, 1)[1] == message(content)
        assert peer.transport.actions[-1] == "write_eof"

    test()


@in_loop
async def test_a_peer_that_does_not_read_loses_its_largest_answer_first() -> None:
    peer = Peer(lambda content: asyncio.sleep(0, bytes(int(content))))
    shared, now = peer.pool.budget, 0.0
    shared._clock = lambda: now
    await peer.send(call(1, b"100") + call(3, b"9000") + call(5, b"200"))
    peer.transport.writes.clear()
    peer.transport.unwritten = 1000
    peer.protocol.pause_writing()
    await peer.send(call(7, b"100") + call(9, b"9000"))
    shared.run_short()
    for _ in range(4):
        now += SWEEP_S
        shared.sweep()
        shared.run_short()
    assert "abort" not in peer.transport.actions
    now += SWEEP_S
    shared.sweep()
    await turns()
    assert answer(peer.transport.output, 9)[0]["grpc-status"] == "8"
    assert kinds(peer.transport.output, 7) == [frames.HEADERS]
    assert "abort" not in peer.transport.actions


@in_loop
async def test_what_waits_only_for_its_turn_is_not_refused() -> None:
    peer = Peer(lambda content: asyncio.sleep(0, bytes(100_000)))
    window = frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 24})
    await peer.send(window + frames.window_update(0, 1 << 24))
    peer.pool.budget.used += peer.pool.budget.limit - 50_000
    await peer.send(b"".join(call(number, b"one") for number in range(1, 17, 2)))
    for number in range(1, 17, 2):
        assert answer(peer.transport.output, number)[1] == message(bytes(100_000))


@in_loop
async def test_what_a_peer_does_not_read_counts_and_makes_room_for_others() -> None:
    peer = Peer()
    shared, now = peer.pool.budget, 0.0
    shared._clock = lambda: now
    at_rest = shared.used
    peer.transport.unwritten = 100_000
    peer.protocol.pause_writing()
    assert shared.used - at_rest == shared.answers == 100_000
    peer.protocol.resume_writing()
    assert (shared.used, shared.answers) == (at_rest, 0)

    peer.protocol.pause_writing()
    for _ in range(8):
        now += SWEEP_S
        shared.sweep()
    assert "abort" not in peer.transport.actions  # there is room for all
    shared.refusal("grpc")
    now += SWEEP_S
    shared.sweep()
    assert peer.transport.actions[-1] == "abort"
    peer.protocol.connection_lost(None)
    assert shared.answers == 0


@in_loop
async def test_a_large_answer_leaves_in_parts_until_its_peer_does_not_read() -> None:
    content = bytes(3 << 20)

    async def reply(_: bytes) -> bytes:
        return content

    peer = Peer(reply)
    window = frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 24})
    await peer.send(window + frames.window_update(0, 1 << 24))
    peer.transport.writes.clear()

    def write(part: bytes) -> None:
        peer.transport.writes.append(part)
        if len(peer.transport.output) > 1 << 20:
            peer.protocol.pause_writing()

    # For this test alone, the transport is one that fills up.
    peer.transport.write = write  # type: ignore[method-assign]
    await peer.send(call(1, b"one"))
    assert 1 << 20 < len(peer.transport.output) < 2 << 20
    assert peer.pool.budget.answers == len(content) + 5
    del peer.transport.write
    peer.protocol.resume_writing()
    await turns()
    assert answer(peer.transport.output, 1)[1] == message(content)
    assert max(map(len, peer.transport.writes)) < 1 << 20
    assert peer.pool.budget.answers == 0


def pongs(transport: Transport) -> int:
    return transport.output.count(b"\0\0\x08\x06\x01")


@in_loop
async def test_many_frames_are_taken_over_several_turns() -> None:
    """One read brings more frames than a turn of the event loop may take."""
    peer = Peer()
    ping = frames.frame(frames.PING, 0, 0, bytes(8))
    update = frames.window_update(0, 1)
    peer.turns.spend(PER_TURN - 100)
    peer.protocol.data_received(update * 600 + ping * 900 + ping[:3])
    await asyncio.sleep(0)
    assert pongs(peer.transport) < 900
    assert set(peer.transport.actions) == {"pause_reading"}
    await turns()
    assert pongs(peer.transport) == 900
    assert peer.transport.actions[-1] == "resume_reading"
    await peer.send(ping[3:])
    assert pongs(peer.transport) == 901


@in_loop
async def test_many_connections_take_no_more_of_a_turn_than_one() -> None:
    """Each of them brings, in one read, more calls than one turn may open."""
    shared = Turns()
    limits = LIMITS._replace(max_streams=1000)
    peers = [Peer(limits=limits, turns=shared) for _ in range(20)]
    await turns()
    opened = b"".join(headers(number) for number in range(1, 401, 2))
    for peer in peers:
        peer.protocol.data_received(opened)

    def calls() -> int:
        return sum(peer.pool.open_calls for peer in peers)

    assert 0 < calls() <= PER_TURN // 10 + 1
    before = calls()
    while shared.waiting:
        await asyncio.sleep(0)
        assert calls() - before <= PER_TURN // 10 + 1
        before = calls()
    assert calls() == 20 * 200


@in_loop
async def test_what_waits_for_its_turn_waits_for_the_peer_to_read_as_well() -> None:
    peer = Peer()
    peer.turns.spend(PER_TURN - 100)
    peer.protocol.data_received(frames.frame(frames.PING, 0, 0, bytes(8)) * 900)
    peer.protocol.pause_writing()
    await turns()
    assert pongs(peer.transport) < 900
    assert "resume_reading" not in peer.transport.actions
    peer.protocol.resume_writing()
    await turns()
    assert pongs(peer.transport) == 900
    assert peer.transport.actions[-1] == "resume_reading"


@in_loop
async def test_what_waits_for_its_turn_is_dropped_with_the_connection() -> None:
    peer = Peer()
    peer.turns.spend(PER_TURN - 100)
    peer.protocol.data_received(frames.frame(frames.PING, 0, 0, bytes(8)) * 900)
    peer.protocol.connection_lost(None)
    await turns()
    assert pongs(peer.transport) < 900


@in_loop
async def test_a_lost_connection_is_freed_without_a_garbage_collection() -> None:
    """A thousand of them would hold some 5 MB until the next one."""
    peer = Peer()
    await peer.send(call(1, b"one") + headers(3))
    gone = weakref.ref(peer.protocol)
    gc.disable()
    try:
        peer.protocol.connection_lost(None)
        del peer
        await turns()
        assert gone() is None
    finally:
        gc.enable()


@in_loop
async def test_a_broken_connection_is_half_closed_after_its_goaway() -> None:
    peer = Peer()
    await peer.send(headers(2))
    assert goaway(peer.transport.output) is not None
    assert peer.transport.actions == ["write_eof"]
    await peer.send(call(3, b""))  # and is not read any more
    assert peer.transport.actions == ["write_eof"]


@in_loop
async def test_stopping_waits_for_the_answer() -> None:
    waiting: list[asyncio.Future[bytes]] = []

    async def reply(content: bytes) -> bytes:
        waiting.append(asyncio.get_running_loop().create_future())
        return await waiting[0]

    peer = Peer(reply)
    await peer.send(call(1, b""))
    peer.protocol.stop()
    await turns()
    assert goaway(peer.transport.output) == (frames.NO_ERROR, "the server is stopping")
    assert peer.transport.actions == []
    waiting[0].set_result(b"last")
    await turns()
    assert answer(peer.transport.output, 1)[1] == message(b"last")
    assert peer.transport.actions == ["write_eof"]


def stop_of(*connections: Http2Protocol) -> tuple[Http2Server, asyncio.Future[None]]:
    """A server with these connections, and its stop, which has begun."""
    calls: Any = Calls(echo)
    server = Http2Server(RPCS, calls, Settings(), budget(), Callers(), None, Turns())
    server._connections.update(connections)
    return server, asyncio.ensure_future(server.stop(timeout=3600.0))


@pytest.mark.usefixtures("an_hour_to_confirm")
@in_loop
async def test_a_call_that_crosses_the_announced_end_is_answered() -> None:
    """RFC 9113, 6.8: a client that repeats nothing would lose it."""
    peer = Peer()
    await turns()
    peer.transport.writes.clear()
    server, stopping = stop_of(peer.protocol)
    await turns()
    (kind, _, _, announcement), (_, _, _, ping) = sent(peer.transport.output)
    assert (kind, announcement[:8]) == (frames.GOAWAY, b"\x7f\xff\xff\xff" + bytes(4))
    await peer.send(call(1, b"crossing"))
    assert answer(peer.transport.output, 1)[1] == message(b"answer to crossing")
    assert peer.transport.actions == []
    await peer.send(frames.frame(frames.PING, frames.ACK, 0, ping))
    assert peer.transport.actions == ["write_eof"]
    server._connections.clear()
    await stopping


@pytest.mark.usefixtures("no_time_to_confirm")
@in_loop
async def test_a_peer_that_confirms_no_end_holds_a_stop_for_a_second_at_most() -> None:
    peer = Peer()
    server, stopping = stop_of(peer.protocol)
    async with asyncio.timeout(120.0):
        while "write_eof" not in peer.transport.actions:
            await asyncio.sleep(0)
        server._connections.clear()
        await stopping
    assert goaway(peer.transport.output) == (frames.NO_ERROR, "the server is stopping")


@pytest.mark.usefixtures("no_time_to_confirm")
@in_loop
async def test_a_connection_that_is_made_during_a_stop_is_stopped_too() -> None:
    server, stopping = stop_of()
    await asyncio.sleep(0)
    transport = Transport()
    connection = server._protocol()  # by asyncio, for a client accepted before the stop
    connection.connection_made(transport)
    async with asyncio.timeout(120.0):
        while not transport.actions:
            await asyncio.sleep(0)
        connection.connection_lost(None)
        await stopping
    assert goaway(transport.output) == (frames.NO_ERROR, "the server is stopping")
    assert transport.actions[0] == "write_eof"


@in_loop
async def test_a_peer_that_closes_its_side_gets_the_answers_that_are_due() -> None:
    waiting: dict[bytes, asyncio.Future[bytes]] = {}

    async def reply(content: bytes) -> bytes:
        waiting[content] = asyncio.get_running_loop().create_future()
        return await waiting[content]

    peer = Peer(reply)
    await peer.send(call(1, b"one") + call(3, b"two") + headers(5))
    assert peer.protocol.eof_received()
    await turns()
    waiting[b"one"].set_result(b"first")
    await turns()
    assert answer(peer.transport.output, 1)[1] == message(b"first")
    assert peer.transport.actions == []
    assert peer.protocol.eof_received()  # also if the transport says so again
    waiting[b"two"].set_result(b"second")
    await turns()
    assert answer(peer.transport.output, 3)[1] == message(b"second")
    assert peer.transport.actions == ["write_eof"]


@in_loop
async def test_a_peer_that_closes_its_side_without_a_call_is_gone() -> None:
    peer = Peer()
    await peer.send(headers(1, block(STREAMING)) + data(1, message(b"")[:3]))
    assert peer.protocol.eof_received()
    await turns()
    assert peer.transport.actions == ["write_eof"]


@in_loop
async def test_the_end_of_input_is_the_end_of_a_connection_without_halves() -> None:
    """TLS: the transport closes whatever is returned."""
    peer = Peer(never)
    peer.transport.can_write_eof = lambda: False  # type: ignore[method-assign]
    await peer.send(call(1, b"one"))
    assert not peer.protocol.eof_received()


OPTIONS = {
    "SO_KEEPALIVE": (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    "TCP_KEEPIDLE": (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    "TCP_KEEPINTVL": (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    "TCP_KEEPCNT": (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    "TCP_USER_TIMEOUT": (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
}


async def options_of_accepted(**settings: Any) -> dict[str, int]:
    """What the kernel has of OPTIONS, for a connection that a server has accepted."""
    calls: Any = Calls(echo)
    server = Http2Server(RPCS, calls, Settings(**settings), budget(), Callers(), None, Turns())
    listening = socket.create_server(("127.0.0.1", 0))
    await server.start(listening)
    with socket.create_connection(listening.getsockname()):
        async with asyncio.timeout(60.0):
            while not server._connections:
                await asyncio.sleep(0)
        (connection,) = server._connections
        accepted = connection._transport.get_extra_info("socket")
        options = {name: accepted.getsockopt(*option) for name, option in OPTIONS.items()}
    await server.stop(timeout=60.0)
    return options


@in_loop
async def test_the_kernel_looks_for_a_peer_that_is_gone() -> None:
    options = await options_of_accepted(keepalive_interval=30.0, keepalive_timeout=8.0)
    assert options == {
        "SO_KEEPALIVE": 1,
        "TCP_KEEPIDLE": 30,
        "TCP_KEEPINTVL": 2,
        "TCP_KEEPCNT": 4,
        "TCP_USER_TIMEOUT": 38_000,  # milliseconds
    }


@in_loop
async def test_the_kernel_looks_for_no_peer_without_an_interval() -> None:
    with socket.create_server(("127.0.0.1", 0)) as untouched:
        defaults = {name: untouched.getsockopt(*option) for name, option in OPTIONS.items()}
    assert await options_of_accepted(keepalive_interval=0.0) == defaults
    assert defaults["SO_KEEPALIVE"] == defaults["TCP_USER_TIMEOUT"] == 0
