"""One connection: what a client sends, in pieces, and what it gets."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from service.core.budget import SWEEP_S, Budget
from service.http.carrier import READ_AHEAD
from service.http.http1.connection import (
    AT_ONCE,
    Http1Connection,
    RefuseEarly,
    Request,
    RequestScope,
)
from service.http.http1.heads import MAX_KNOWN, Heads
from tests.service.http.transport import Transport, echo, in_loop, settle

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


Front = Callable[[RequestScope, Request], Awaitable[None]]


class Client:
    """A client's end of a connection."""

    def __init__(self, front: Front = echo, refuse_early: RefuseEarly | None = None) -> None:
        self.budget = Budget(1 << 25)

        async def call(scope: RequestScope, request: Request) -> None:
            await front(scope, request)

        self.connections: set[Http1Connection] = set()
        self.lost = 0
        buffer = memoryview(bytearray(AT_ONCE))
        self.server = Http1Connection(
            call,
            Heads(),
            buffer,
            self.connections,
            self._lose,
            self.budget,
            is_secure=False,
            refuse_early=refuse_early,
        )
        self.transport = Transport()
        self.server.connection_made(self.transport)

    def _lose(self) -> None:
        self.lost += 1

    async def send(self, content: bytes, size: int = 0) -> None:
        """Send bytes, `size` at a time, as far as they are read; the loop runs in between."""
        size = size or len(content) or 1
        for position in range(0, len(content), size):
            piece = content[position : position + size]
            for _ in range(20):
                if not self.transport.is_paused:
                    break
                await asyncio.sleep(0)
            assert not self.transport.is_paused, "the server reads no more"
            self.server.get_buffer(-1)[: len(piece)] = piece
            self.server.buffer_updated(len(piece))
            await asyncio.sleep(0)
        await settle()

    @property
    def bodies(self) -> list[bytes]:
        """The bodies of all answers so far."""
        rest, found = self.transport.output, []
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            if b" 100 " in head:
                continue
            size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            found.append(rest[:size])
            rest = rest[size:]
        return found


@pytest.mark.parametrize("size", [0, 1, 7])
@pytest.mark.parametrize(
    ("content", "body"),
    [
        (GET, b"GET /a "),
        (b"\r\n\r\n" + GET, b"GET /a "),
        (POST % 3 + b"abc", b"POST /a abc"),
        (CHUNKED + b"2\r\nab\r\n1;x\r\nc\r\n0\r\nT: t\r\n\r\n", b"POST /a abc"),
    ],
)
@in_loop
async def test_requests_are_answered_one_after_another(
    content: bytes, body: bytes, size: int
) -> None:
    client = Client()
    await client.send(content * 3, size)
    assert client.bodies == [body] * 3
    assert not client.transport.has_ended
    assert not client.transport.is_paused
    assert client.server.is_idle


@in_loop
async def test_what_arrives_before_the_turn_of_a_request_that_waits_is_behind_it() -> None:
    client = Client()
    answer = client.server.answer
    late = [GET]

    def answer_and_receive(*values: Any) -> None:
        answer(*values)
        if late:
            client.server.data_received(late.pop())

    client.server.answer = answer_and_receive  # type: ignore
    await client.send(GET + POST % 3 + b"abc")
    assert client.bodies == [b"GET /a ", b"POST /a abc", b"GET /a "]


@in_loop
async def test_a_request_says_who_sends_it() -> None:
    scopes = []

    async def front(scope: RequestScope, request: Request) -> None:
        scopes.append(scope)
        request.response_bytes(204, [], b"")

    client = Client(front)
    await client.send(b"GET http://h:1/a?b HTTP/1.1\r\nHost: h:1\r\nX: y\r\n\r\n" * 2)
    (scope, again) = scopes
    assert scope is again  # of equal requests of one client
    assert (scope.client, scope.server, scope.scheme) == ("192.0.2.1:5", "::1:80", "http")
    assert (scope.authority, scope.query_string, scope.headers.get("x")) == ("h:1", "b", "y")


@in_loop
async def test_a_request_like_the_one_before_may_come_in_any_pieces() -> None:
    requests = POST % 3 + b"abc" + POST % 3 + b"abd" + GET + GET + POST % 13 + b"x" * 13
    answers = [b"POST /a abc", b"POST /a abd", b"GET /a ", b"GET /a ", b"POST /a " + b"x" * 13]
    for size in range(1, len(requests)):
        client = Client()
        for start in range(0, len(requests), size):
            await client.send(requests[start : start + size])
        assert client.bodies == answers


@in_loop
async def test_a_long_head_is_not_remembered() -> None:
    client = Client()
    head = GET[:-2] + b"X: " + b"y" * MAX_KNOWN + b"\r\n\r\n"
    await client.send(GET + head + head + GET)
    assert client.bodies == [b"GET /a "] * 4
    await client.send(head)
    assert client.server._known == b""


@in_loop
async def test_a_body_that_came_with_its_head_is_whole() -> None:
    wholes = []

    async def front(scope: RequestScope, request: Request) -> None:
        wholes.append(request.whole)
        pieces = [piece async for piece in request]
        request.response_bytes(200, [], b"".join(pieces) + await request())

    client = Client(front)
    await client.send(GET)
    await client.send(POST % 3 + b"abc")
    assert wholes == [b"", b"abc"]
    assert client.bodies == [b"", b"abcabc"]


@in_loop
async def test_a_request_may_be_refused_at_once() -> None:
    bodies = []

    def refuse(scope: RequestScope, request: Request, body: bytes | None) -> bool:
        bodies.append(body)
        if scope.path != "/b":
            return False
        request.response_bytes(503, [], b"no")
        return True

    client = Client(refuse_early=refuse)
    refused = GET.replace(b"/a", b"/b")
    await client.send(GET + refused * 2 + POST % 3 + b"abc" + refused)
    await client.send(POST % 3)
    await client.send(b"abc")
    answered = [b"GET /a ", b"no", b"no", b"POST /a abc", b"no", b"POST /a abc"]
    assert client.bodies == answered
    assert bodies == [b"", b"", b"", b"abc", b"", None]
    assert client.server.is_idle


def echo_after(asks: asyncio.Event) -> Front:
    """A front that asks for a body once the event is set."""

    async def front(scope: RequestScope, request: Request) -> None:
        await asks.wait()
        await echo(scope, request)

    return front


@in_loop
async def test_what_nobody_asks_for_is_not_read() -> None:
    asks = asyncio.Event()
    client = Client(echo_after(asks))
    await client.send(POST % 100)
    await client.send(bytes(10))
    assert client.transport.is_paused
    asks.set()
    await settle()
    await client.send(bytes(90), 30)
    assert client.bodies == [b"POST /a " + bytes(100)]


@in_loop
async def test_a_large_body_is_not_read_to_its_end_in_one_turn() -> None:
    """60 clients with 8 MB each held up others for 160 ms."""
    client = Client()
    client.server.data_received(POST % 8_000_000)
    await settle()
    part, size = bytes(64 * 1024), 0
    while not client.transport.is_paused:  # as libuv would: no turn in between
        client.server.data_received(part)
        size += len(part)
    assert size <= 512 * 1024
    await client.send(bytes(8_000_000 - size), len(part))
    assert [len(body) for body in client.bodies] == [len("POST /a ") + 8_000_000]


@in_loop
async def test_a_body_is_read_in_large_pieces_once_it_is_asked_for() -> None:
    """A client sends 400 KB for 512 images. A body that waits for its turn takes 64 KB at most."""
    asks = asyncio.Event()
    client = Client(echo_after(asks))
    sizes = [len(client.server.get_buffer(-1))]
    await client.send(POST % 300_000)
    sizes.append(len(client.server.get_buffer(-1)))
    asks.set()
    await settle()
    sizes.append(len(client.server.get_buffer(-1)))
    await client.send(bytes(300_000), sizes[-1])
    sizes.append(len(client.server.get_buffer(-1)))
    assert sizes == [READ_AHEAD, READ_AHEAD, AT_ONCE, READ_AHEAD]
    assert [len(body) for body in client.bodies] == [len("POST /a ") + 300_000]


@in_loop
async def test_what_is_dropped_is_read_in_turns() -> None:
    async def front(scope: RequestScope, request: Request) -> None:
        request.response_bytes(503, [], b"busy")

    client = Client(front)
    await client.send(POST % 8_000_000)
    assert client.transport.has_ended
    for _ in range(3):
        client.server.data_received(bytes(64 * 1024))
        assert client.transport.is_paused
        await settle()
        assert not client.transport.is_paused
    client.server.data_received(bytes(64 * 1024))
    client.server.abort()
    await settle()
    assert client.transport.is_paused  # a transport that is closed must not be resumed


@in_loop
async def test_a_client_that_does_not_wait_for_answers_is_read_a_little_ahead() -> None:
    goes_on = asyncio.Event()

    async def front(scope: RequestScope, request: Request) -> None:
        await goes_on.wait()
        await echo(scope, request)

    client = Client(front)
    many = GET * 1000
    for _ in range(10):
        if not client.transport.is_paused:
            await client.send(many)
    assert client.transport.is_paused
    assert len(client.server.unread) < 128 * 1024
    goes_on.set()
    while len(client.bodies) < 3000:
        await settle()
    assert not client.transport.is_paused


@in_loop
async def test_a_client_that_expects_it_is_told_to_continue() -> None:
    client = Client()
    expects = POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n") % 3
    await client.send(expects)
    assert client.transport.output == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send(b"abc")
    assert client.bodies == [b"POST /a abc"]
    client = Client()
    await client.send(expects + b"abc")  # it did not wait
    assert b" 100 " not in client.transport.output


@in_loop
async def test_an_answer_before_the_end_of_the_body_ends_the_connection() -> None:
    async def front(scope: RequestScope, request: Request) -> None:
        request.response_bytes(413, [], b"large")

    client = Client(front)
    await client.send(POST % 100 + bytes(50))
    assert client.bodies == [b"large"]
    assert b"\r\nconnection: close\r\n" in client.transport.output
    assert client.transport.has_ended
    assert not client.transport.is_paused  # the rest is read, so that the answer is not lost
    await client.send(bytes(50) + GET)
    assert client.bodies == [b"large"]
    client.server.connection_lost(None)
    assert (client.lost, client.connections) == (1, set())


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
    ],
)
@in_loop
async def test_a_connection_ends_when_the_client_wants_it(request_bytes: bytes) -> None:
    client = Client()
    await client.send(request_bytes + GET)
    assert client.bodies == [b"GET / "]
    assert client.transport.has_ended


@in_loop
async def test_a_connection_ends_when_the_front_wants_it() -> None:
    async def front(scope: RequestScope, request: Request) -> None:
        request.response_bytes(200, [("connection", "close")], b"")

    client = Client(front)
    await client.send(GET)
    assert client.transport.output.count(b"connection: close") == 1
    assert client.transport.has_ended


@pytest.mark.parametrize("before", [b"", GET])
@pytest.mark.parametrize("content", [b"\0", b"\0" + GET, b"GET / HTTP/1.1\r\n\r\n"])
@in_loop
async def test_what_is_no_request_is_answered_and_ends_the_connection(
    content: bytes, before: bytes
) -> None:
    client = Client()
    await client.send(before)
    await client.send(content)
    assert client.transport.output.count(b"HTTP/1.1 400 Bad Request\r\n") == 1
    assert "error" in json.loads(client.bodies[-1])
    assert client.transport.has_ended


@in_loop
async def test_a_client_that_closed_its_side_gets_the_answers_that_are_due() -> None:
    client = Client()
    client.server.data_received(GET * 2)
    assert client.server.eof_received() is True
    await settle()
    assert len(client.bodies) == 2
    assert client.transport.is_closed


@in_loop
async def test_a_request_that_waits_for_its_turn_when_the_client_closes_is_answered() -> None:
    async def front(scope: RequestScope, request: Request) -> None:
        request.response_bytes(200, [], b"")
        # Between two requests: the next one begins in the next turn of the loop.
        client.server.eof_received()

    client = Client(front)
    client.server.data_received(GET * 2)
    await settle()
    assert len(client.bodies) == 2
    assert client.transport.is_closed


@in_loop
async def test_half_a_body_is_answered_as_such() -> None:
    client = Client()
    client.server.data_received(POST % 3 + b"a")
    assert client.server.eof_received() is True
    await settle()
    assert client.bodies == [b"half"]
    assert client.transport.is_closed
    client = Client()
    await client.send(CHUNKED + b"zz\r\n")
    assert client.bodies == [b"half"]


@pytest.mark.parametrize("content", [b"", b"GET /", GET])
@in_loop
async def test_without_a_request_the_end_of_a_client_ends_the_connection(content: bytes) -> None:
    client = Client()
    await client.send(content)
    assert client.server.eof_received() is False


@in_loop
async def test_a_request_of_a_lost_connection_is_cancelled() -> None:
    ends = []

    async def front(scope: RequestScope, request: Request) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("cancelled")
            request.response_bytes(200, [], b"")  # goes nowhere

    client = Client(front)
    client.server.data_received(GET)
    await settle()
    client.server.connection_lost(ConnectionResetError())
    await settle()
    assert (ends, client.transport.output, client.connections) == (["cancelled"], b"", set())
    assert not client.transport.is_aborted


@in_loop
async def test_who_does_not_read_answers_gets_no_further_ones() -> None:
    client = Client()
    client.server.pause_writing()
    assert client.transport.is_paused
    client.server.data_received(GET * 3)  # was on its way
    await settle()
    assert client.bodies == []
    client.server.resume_writing()
    await settle()
    assert len(client.bodies) == 3
    assert not client.transport.is_paused


@in_loop
async def test_progress_is_what_the_client_takes() -> None:
    client = Client()
    began = client.server.moved_at
    client.transport.unsent = 100
    client.server.note_progress(began + 1)
    client.server.note_progress(began + 2)
    assert (client.server.unsent, client.server.unsent_since) == (100, began + 1)
    client.transport.unsent = 50
    client.server.note_progress(began + 3)
    assert (client.server.unsent_since, client.server.moved_at) == (began + 3, began + 3)


@in_loop
async def test_the_time_for_a_head_begins_with_its_first_byte_and_only_once() -> None:
    client = Client()
    server = client.server
    await client.send(GET)
    answered = server.waits_since
    await asyncio.sleep(0.001)
    await client.send(b"\r\n")
    began = server.waits_since
    assert began > answered
    await asyncio.sleep(0.001)
    await client.send(b"\r\n" * 3 + GET[:-1], 5)
    assert server.waits_since == began


@in_loop
async def test_a_reset_lets_the_kernel_drop_what_is_unsent() -> None:
    client = Client()
    client.server.reset()
    assert client.transport.is_aborted
    assert client.transport.options


@in_loop
async def test_a_connection_lingers_until_its_answer_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.http.carrier.LINGER_S", 0.01)
    client = Client()
    client.transport.unsent = 10
    client.server.hang_up()
    await asyncio.sleep(0.05)
    assert not client.transport.is_aborted
    client.transport.unsent = 0
    while not client.transport.is_aborted:
        await asyncio.sleep(0.01)


@in_loop
async def test_an_answer_that_cannot_be_sent_ends_the_connection() -> None:
    async def front(scope: RequestScope, request: Request) -> None:
        value = "no\nline" if scope.method == "GET" else "1"
        request.response_bytes(200, [("x", value)], b"")

    client = Client(front)
    await client.send(GET + POST % 0)
    assert client.transport.is_aborted
    assert not client.transport.output  # the second answer would be taken for the first one


@pytest.mark.parametrize("error", [None, RuntimeError("no answer")])
@in_loop
async def test_a_request_without_an_answer_ends_the_connection(
    error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def front(scope: RequestScope, request: Request) -> None:
        if error:
            raise error

    client = Client(front)
    with caplog.at_level(logging.ERROR):
        await client.send(GET)
    assert client.transport.is_aborted
    assert ("no answer" in caplog.text) is bool(error)


async def answer_at_length(scope: RequestScope, request: Request) -> None:
    request.response_bytes(200, [], bytes(100_000))


@in_loop
async def test_what_a_client_leaves_of_its_answer_counts_in_the_budget() -> None:
    client = Client(answer_at_length)
    client.transport.protocol = client.server
    client.transport.limit = 1000
    await client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    await settle()
    assert client.budget.used == client.transport.unsent > 99_000
    client.transport.unsent -= 60_000
    client.server.note_progress(0.0)
    assert client.budget.in_flight < 40_000
    client.transport.take_all()
    assert client.budget.used == 0


@in_loop
async def test_a_client_that_takes_its_answer_slowly_gives_way() -> None:
    client = Client(answer_at_length)
    now = 0.0
    client.budget = client.server.budget = Budget(1 << 20, clock=lambda: now)
    client.transport.protocol = client.server
    client.transport.limit = 1000
    await client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    await settle()
    for _ in range(20):
        now += SWEEP_S
        client.budget.sweep()
    assert not client.transport.is_aborted  # no other client needs the room
    client.budget.refusal("http")
    client.budget.sweep()
    assert client.transport.is_aborted
    client.server.connection_lost(None)
    assert client.budget.used == 0
