"""One HTTP/2 connection: what a client sends, in pieces, and what it gets."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from service.core.budget import SWEEP_S, Budget
from service.core.turns import PER_TURN, Turns
from service.http.exchange import Ended
from service.http.http1.connection import PREFACE, Http1Connection
from service.http.http2 import connection as module
from service.http.http2.connection import CONNECTION_WINDOW, MAX_STREAMS, STREAM_WINDOW
from service.http.http2.streams import RequestScope, Stream
from tests.service.http.http2.client import (
    BODY_TIMEOUT,
    HEADERS,
    POST,
    Client,
)
from tests.service.http.transport import echo, in_loop, settle

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FRAME_SIZE_ERROR = 0, 1, 2, 6
REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 7, 8, 11
HOUR = 3600.0


class Gate:
    """A front whose answers wait until it is opened."""

    def __init__(self) -> None:
        self.scopes: list[RequestScope] = []
        self.streams: list[Stream] = []
        self._opened = asyncio.Event()

    async def __call__(self, scope: RequestScope, stream: Stream) -> None:
        self.scopes.append(scope)
        self.streams.append(stream)
        await self._opened.wait()
        await echo(scope, stream)

    def open(self) -> None:
        self._opened.set()


async def silent(scope: RequestScope, stream: Stream) -> None:
    """Never answer, nor read."""
    await asyncio.sleep(HOUR)


def large(size: int) -> Any:
    async def answer(scope: RequestScope, stream: Stream) -> None:
        stream.response_bytes(200, [("content-type", "text/plain")], bytes(size))

    return answer


# The begin.


@pytest.mark.parametrize("size", [0, 1, 3, 24])
@in_loop
async def test_a_client_with_the_preface_gets_answers_however_its_bytes_are_split(
    size: int,
) -> None:
    client = Client()
    get = await client.ask(size=size)
    post = await client.ask(POST, b"body", size=size)
    assert client.answers[get][1] == b"GET /a "
    headers, body = client.answers[post]
    assert body == b"POST /a body"
    assert headers[":status"] == "200"
    assert headers["content-length"] == "12"
    assert headers["date"].endswith(" GMT")
    assert client.ended == [get, post]
    assert client.connections == {client.server}


@in_loop
async def test_a_part_of_the_preface_is_waited_for_as_for_a_head() -> None:
    client = Client()
    await client.write(PREFACE[:20])
    first = client.transport.protocol
    assert isinstance(first, Http1Connection)
    assert not client.transport.output
    assert not first.is_closing
    assert first.late(first.waits_since + 11, client.settings) == "headers"
    await client.write(PREFACE[20:])
    assert client.server.waits_since == first.waits_since


@pytest.mark.parametrize("wrong", [b"PRI * HTTP/2.0\r\n\r\nSX", b"PRI * HTTP/2.1", b"PRJ"])
@in_loop
async def test_what_is_almost_the_preface_is_no_http2(wrong: bytes) -> None:
    client = Client()
    await client.write(wrong + b" \r\n\r\n")
    assert client.transport.output.startswith(b"HTTP/1.1 400 ")


@in_loop
async def test_the_preface_after_a_request_of_http1_is_malformed() -> None:
    client = Client()
    await client.write(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
    await client.write(PREFACE)
    assert b"HTTP/1.1 400 " in client.transport.output


@in_loop
async def test_the_first_frame_has_to_be_settings() -> None:
    client = Client()
    await client.write(PREFACE + PingFrame(0, opaque_data=b"12345678").serialize())
    assert client.goaways == [(0, PROTOCOL_ERROR)]
    assert client.transport.has_ended


@in_loop
async def test_limits_are_announced() -> None:
    client = Client()
    await client.ask()
    (settings, _) = client.frames(SettingsFrame)
    assert settings.settings[SettingCodes.MAX_CONCURRENT_STREAMS] == MAX_STREAMS
    assert settings.settings[SettingCodes.INITIAL_WINDOW_SIZE] == STREAM_WINDOW
    assert settings.settings[SettingCodes.MAX_HEADER_LIST_SIZE] == 65_536
    (window,) = client.frames(WindowUpdateFrame)
    assert window.window_increment == CONNECTION_WINDOW - 65_535


# Requests.


@in_loop
async def test_the_front_sees_a_request_as_over_http1() -> None:
    gate = Gate()
    client = Client(gate)
    pseudo = [(":method", "GET"), (":scheme", "https"), (":path", "/a%20b?c=%20"), HEADERS[3]]
    fields = [("x", "1"), ("cookie", "a=1"), ("x", "2"), ("cookie", "b=2"), ("y", "\xe4")]
    raw = [(name.encode(), value.encode("latin-1")) for name, value in pseudo + fields]
    await client.ask(raw)  # type: ignore[arg-type]
    (scope,), (stream,) = gate.scopes, gate.streams
    assert (scope.method, scope.path, scope.query_string) == ("GET", "/a b", "c=%20")
    assert (scope.authority, scope.http_version, scope.scheme) == ("h", "2", "http")
    assert (scope.client, scope.server, scope.certificate) == ("192.0.2.1:5", "::1:80", "")
    assert scope.headers.get_all("x") == ["1", "2"]
    assert scope.headers.get("cookie") == "a=1; b=2"
    assert scope.headers.get("y") == "\xe4"
    assert ":path" not in scope.headers
    assert stream.whole == b""


@in_loop
async def test_a_body_that_comes_with_the_headers_is_there_at_once() -> None:
    gate = Gate()
    client = Client(gate)
    await client.ask(POST, b"body")
    client.h2.send_headers(3, POST)
    client.h2.send_data(3, b"half")
    await client.flush()
    assert [stream.whole for stream in gate.streams] == [b"body", None]


@in_loop
async def test_a_large_body_arrives_as_it_is_read() -> None:
    client = Client()
    body = bytes(range(256)) * 4096
    stream = await client.ask(POST, body)
    assert client.answers[stream][1] == b"POST /a " + body


@in_loop
async def test_what_nobody_reads_is_bounded_by_the_windows_and_others_continue() -> None:
    async def front(scope: RequestScope, stream: Stream) -> None:
        await (silent if scope.path == "/silent" else echo)(scope, stream)

    client = Client(front)
    await client.flush()
    client.h2.send_headers(1, [*POST[:2], (":path", "/silent"), POST[3]])
    for _ in range(STREAM_WINDOW // 16_384):
        client.h2.send_data(1, bytes(16_384))
    await client.flush()
    assert client.h2.local_flow_control_window(1) == 0
    stream = await client.ask(POST, bytes(500_000))
    assert len(client.answers[stream][1]) == 500_008


@in_loop
async def test_the_window_of_what_is_not_read_comes_back_when_its_request_ends() -> None:
    gate = Gate()
    client = Client(gate)
    await client.flush()
    for stream in range(1, 41, 2):
        client.h2.send_headers(stream, POST)
        for _ in range(4):
            client.h2.send_data(stream, bytes(16_384))
        await client.flush()
        client.h2.reset_stream(stream, CANCEL)
        await client.flush()
    assert client.h2.outbound_flow_control_window >= CONNECTION_WINDOW // 2


@pytest.mark.parametrize("how", ["reset", "end of input", "loss"])
@in_loop
async def test_a_body_that_is_cut_short_raises_ended(how: str) -> None:
    seen: list[object] = []

    async def front(scope: RequestScope, stream: Stream) -> None:
        try:
            async for piece in stream:
                seen.append(piece)
        except Ended:
            seen.append(Ended)
        stream.response_bytes(200, [], b"never")

    client = Client(front)
    client.h2.send_headers(1, POST)
    client.h2.send_data(1, b"half")
    await client.flush()
    if how == "reset":
        client.h2.reset_stream(1, CANCEL)
        await client.flush()
    elif how == "loss":
        client.server.connection_lost(None)
    else:
        assert client.server.eof_received()
    await settle()
    assert seen == [b"half", Ended]
    client.receive()
    assert bool(client.answers) == (how == "end of input")
    if how == "end of input":
        assert client.transport.is_closed
    elif how == "loss":
        assert client.lost == 1
        assert not client.connections


@in_loop
async def test_a_length_that_is_not_that_of_the_body_ends_the_connection() -> None:
    gate = Gate()
    client = Client(gate)
    await client.flush()
    headers = HeadersFrame(1, flags=["END_HEADERS"])
    headers.data = client.h2.encoder.encode([*POST, ("content-length", "5")])
    body = DataFrame(1, b"1234", flags=["END_STREAM"])
    await client.write(headers.serialize())
    await client.write(body.serialize())
    assert client.goaways == [(1, PROTOCOL_ERROR)]
    with pytest.raises(Ended):
        await gate.streams[0]()


@in_loop
async def test_a_client_that_waits_for_it_is_asked_for_its_body() -> None:
    client = Client()
    client.h2.send_headers(1, [*POST, ("expect", "100-continue")])
    await client.flush()
    assert client.events["InformationalResponseReceived"] == 1
    client.h2.send_data(1, b"body", end_stream=True)
    await client.flush()
    assert client.answers[1][1] == b"POST /a body"


@in_loop
async def test_trailers_end_a_body() -> None:
    client = Client()
    client.h2.send_headers(1, POST)
    client.h2.send_data(1, b"body")
    client.h2.send_headers(1, [("x", "1")], end_stream=True)
    await client.flush()
    assert client.answers[1][1] == b"POST /a body"


# Answers.


@in_loop
async def test_an_answer_keeps_within_the_windows_of_its_client() -> None:
    client = Client(large(100_000), window=1000)
    client.h2.send_headers(1, HEADERS, end_stream=True)
    await client.flush()
    assert len(client.answers[1][1]) == 1000
    client.h2.increment_flow_control_window(500, 1)
    await client.flush()
    assert len(client.answers[1][1]) == 1500
    client.h2.increment_flow_control_window(1 << 20, 1)
    await client.flush()
    assert len(client.answers[1][1]) == 65_535  # the connection's
    client.h2.increment_flow_control_window(1 << 20)
    await client.flush()
    assert client.answers[1][1] == bytes(100_000)
    assert client.ended == [1]
    assert max(len(frame.data) for frame in client.frames(DataFrame)) <= 16_384
    assert client.server.request is None


@in_loop
async def test_a_larger_initial_window_frees_answers() -> None:
    client = Client(large(100), window=0)
    client.h2.send_headers(1, HEADERS, end_stream=True)
    await client.flush()
    assert client.answers[1][1] == b""
    client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 100})
    await client.flush()
    assert client.ended == [1]


@in_loop
async def test_answers_share_what_there_is_of_the_connections_window() -> None:
    client = Client(large(100_000), window=1 << 20)
    for stream in (1, 3, 5):
        client.h2.send_headers(stream, HEADERS, end_stream=True)
    await client.flush()
    for _ in range(30):
        client.h2.increment_flow_control_window(20_000)
        await client.flush()
    assert sorted(client.ended) == [1, 3, 5]


@in_loop
async def test_a_transport_that_is_full_holds_back_answers_and_reading() -> None:
    client = Client(large(60_000), window=1 << 20)
    await client.flush()
    client.transport.limit = 30_000
    for stream in (1, 3, 5):
        client.h2.send_headers(stream, HEADERS, end_stream=True)
    await client.write(client.h2.data_to_send())
    await settle()
    assert client.transport.is_paused
    assert len(client.transport.output) < 70_000
    client.transport.take_all()
    await settle()
    client.receive()
    assert client.ended == [1]
    client.h2.increment_flow_control_window(1 << 20)
    await client.flush()
    assert client.ended == [1, 3, 5]
    assert not client.transport.is_paused


@in_loop
async def test_answers_that_wait_for_a_window_count_in_the_budget() -> None:
    client = Client(large(100_000), window=1000)
    for stream in (1, 3, 5, 7):
        client.h2.send_headers(stream, HEADERS, end_stream=True)
    await client.flush()
    assert client.budget.used == 4 * 99_000
    client.h2.increment_flow_control_window(99_000, 1)
    client.h2.increment_flow_control_window(1 << 20)
    await client.flush()
    assert client.ended == [1]
    client.h2.reset_stream(3)
    await client.flush()
    assert client.budget.used == 2 * 99_000
    client.server.connection_lost(None)
    assert client.budget.used == 0


@in_loop
async def test_long_headers_count_until_their_stream_ends() -> None:
    async def front(scope: RequestScope, stream: Stream) -> None:
        await stream()
        stream.response_bytes(200, [], b"")

    client = Client(front)
    await client.flush()
    client.budget = client.server.budget = Budget(1 << 20)
    long = [*POST, *[(f"x-{number}", "a" * 3000) for number in range(10)]]
    for stream in (1, 3, 5, 7):
        client.h2.send_headers(stream, long)
    await client.flush()
    assert 2 * 60_000 < client.budget.used < 1 << 17
    answered = {stream: headers[":status"] for stream, (headers, _) in client.answers.items()}
    assert answered == {5: "503", 7: "503"}
    assert b"max_inflight_bytes" in client.answers[5][1]
    assert client.answers[5][0]["retry-after"] == "1"
    client.h2.reset_stream(1)
    await client.flush()
    assert 60_000 < client.budget.used < 2 * 60_000
    client.h2.end_stream(3)
    await client.flush()
    assert 3 in client.ended
    assert client.budget.used == 0
    client.h2.send_headers(9, long)
    await client.flush()
    assert client.budget.used > 60_000
    client.server.connection_lost(None)
    await settle()
    assert client.budget.used == 0


@in_loop
async def test_a_refused_head_request_has_no_body() -> None:
    async def front(scope: RequestScope, stream: Stream) -> None:
        await stream()

    client = Client(front)
    await client.flush()
    client.server.budget = Budget(1 << 18)
    head = [(":method", "HEAD"), *HEADERS[1:]]
    client.h2.send_headers(1, [*POST, *[(f"x-{number}", "a" * 3000) for number in range(8)]])
    client.h2.send_headers(3, [*head, ("x-long", "a" * 30_000)], end_stream=True)
    client.h2.send_headers(5, [*head, ("x-long", "a\x01")], end_stream=True)
    await client.flush()
    assert client.ended == [3, 5]
    assert [client.answers[n][0][":status"] for n in (3, 5)] == ["503", "400"]
    assert [client.answers[n][1] for n in (3, 5)] == [b"", b""]


@in_loop
async def test_headers_count_while_a_request_has_them_that_was_given_up() -> None:
    may_end = asyncio.Event()

    async def front(scope: RequestScope, stream: Stream) -> None:
        await may_end.wait()

    client = Client(front)
    client.h2.send_headers(1, [*HEADERS, ("x-long", "a" * 3000)], end_stream=True)
    await client.flush()
    client.h2.reset_stream(1)
    await client.flush()
    assert client.budget.used > 6000
    may_end.set()
    await settle()
    assert client.budget.used == 0


@in_loop
async def test_an_answer_that_is_taken_slowly_gives_way_alone() -> None:
    client = Client(large(1 << 20), window=1000)
    await client.flush()
    now = 0.0
    client.budget = client.server.budget = Budget(1 << 22, clock=lambda: now)
    for stream in (1, 3):
        client.h2.send_headers(stream, HEADERS, end_stream=True)
    await client.flush()
    client.h2.increment_flow_control_window(10_000, 3)
    await client.flush()
    for _ in range(20):
        now += SWEEP_S
        client.budget.sweep()
    assert client.server.request is not None  # no other client needs the room
    client.budget.refusal("http")
    client.budget.sweep()
    await settle()
    client.receive()
    assert client.resets == {1: ErrorCodes.CANCEL}


@in_loop
async def test_no_further_request_is_begun_while_answers_are_not_taken() -> None:
    begun = []

    async def front(scope: RequestScope, stream: Stream) -> None:
        begun.append(stream.id)
        stream.response_bytes(200, [], bytes(module._MOST_HELD // 2))

    client = Client(front, window=0)
    for stream in range(1, 21, 2):
        client.h2.send_headers(stream, HEADERS, end_stream=True)
        await client.flush()
    assert begun == [1, 3]
    client.h2.increment_flow_control_window(1000, 1)
    await client.flush()
    assert len(begun) == 10


@in_loop
async def test_requests_that_wait_for_the_client_alone_are_no_reason_to_stay() -> None:
    gate = Gate()
    client = Client(gate, window=0)
    await client.flush()
    server = client.server
    assert server.idle_since == server.moved_at
    client.h2.send_headers(1, HEADERS, end_stream=True)
    await client.flush()
    assert server.idle_since is None
    gate.open()
    await settle()
    answered = server.idle_since
    assert answered is not None
    server._held += module._MOST_HELD
    client.h2.send_headers(3, HEADERS, end_stream=True)
    await client.flush()
    assert len(gate.scopes) == 1
    begun = server.idle_since
    assert begun is not None
    assert begun > answered
    client.h2.increment_flow_control_window(1, 1)
    await client.flush()
    assert server.idle_since == begun  # a byte is no progress


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304), ("GET", 200)]
)
@in_loop
async def test_answers_without_a_body(method: str, status: int) -> None:
    async def front(scope: RequestScope, stream: Stream) -> None:
        stream.response_bytes(status, [("Connection", "close"), ("X-Y", "\xe4")], b"body")

    client = Client(front)
    stream = await client.ask([(":method", method), *HEADERS[1:]])
    headers, body = client.answers[stream]
    has_body = (method, status) == ("GET", 200)
    assert body == (b"body" if has_body else b"")
    assert ("content-length" in headers) == has_body
    assert "connection" not in headers
    assert headers["x-y"] == "\xe4"
    assert client.ended == [stream]


@in_loop
async def test_an_answer_ahead_of_the_body_ends_the_stream_without_an_error() -> None:
    client = Client(large(3))
    client.h2.send_headers(1, POST)
    client.h2.send_data(1, b"half")
    await client.flush()
    assert client.answers[1][1] == bytes(3)
    assert client.ended == [1]
    assert client.resets == {1: NO_ERROR}
    late = DataFrame(1, b"the rest", flags=["END_STREAM"])
    await client.write(late.serialize())
    assert client.goaways == []
    assert (await client.ask()) in client.ended


@in_loop
async def test_an_answer_to_nobody_goes_nowhere() -> None:
    gate = Gate()
    client = Client(gate)
    await client.ask()
    client.h2.reset_stream(1, CANCEL)
    await client.flush()
    gate.open()
    await settle()
    assert client.frames(HeadersFrame) == []
    assert (await client.ask()) in client.ended


@in_loop
async def test_a_front_that_fails_or_does_not_answer_resets_its_stream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def front(scope: RequestScope, stream: Stream) -> None:
        if scope.path == "/a":
            stream.response_bytes(200, [("x", "a\nb: c")], b"")

    client = Client(front)
    with caplog.at_level(logging.CRITICAL):
        first = await client.ask()
    second = await client.ask([*HEADERS[:2], (":path", "/b"), HEADERS[3]])
    assert client.resets == {first: INTERNAL_ERROR, second: INTERNAL_ERROR}


@in_loop
async def test_a_connection_that_is_used_for_long_does_not_grow() -> None:
    client = Client()
    for _ in range(1000):
        await client.ask()
    machine = client.server._h2
    assert len(machine.streams) <= 1
    assert len(machine._closed_streams) <= 2 * MAX_STREAMS


# Malformed requests.

TOO_MANY = [(f"x-{number}", "1") for number in range(101)]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([*HEADERS, *TOO_MANY], 431),
        ([*HEADERS[:2], (":path", "a"), HEADERS[3]], 400),
        ([*HEADERS[:2], (":path", "http://h/a"), HEADERS[3]], 400),
        ([*HEADERS[:2], (":path", "*"), HEADERS[3]], 400),
        ([*HEADERS[:2], (":path", "/a b"), HEADERS[3]], 400),
        ([(":method", "G T"), *HEADERS[1:]], 400),
        ([(":method", "CONNECT"), HEADERS[3]], 400),
        (HEADERS[:3], 400),
        (HEADERS[1:], 400),
        ([*HEADERS, (":path", "/b")], 400),
        ([*HEADERS, ("x", "1"), (":status", "200")], 400),
        ([*HEADERS, ("host", "other")], 400),
        ([*HEADERS, ("X", "1")], 400),
        ([*HEADERS, ("a(b", "1")], 400),
        ([*HEADERS, ("x", "a\x01b")], 400),
        ([*HEADERS, ("x", "a\nb")], 400),
        ([*HEADERS, ("connection", "close")], 400),
        ([*HEADERS, ("transfer-encoding", "chunked")], 400),
        ([*HEADERS, ("te", "gzip")], 400),
        ([*HEADERS, ("content-length", "0"), ("content-length", "0")], 400),
        ([*HEADERS, ("content-length", "9" * 20)], 400),
    ],
)
@in_loop
async def test_a_malformed_request_is_refused_alone(
    headers: list[tuple[str, str]], status: int
) -> None:
    client = Client()
    client.h2.config.validate_outbound_headers = False
    client.h2.config.normalize_outbound_headers = False
    wrong = client.h2.get_next_available_stream_id()
    client.h2.send_headers(wrong, headers)
    right = wrong + 2
    client.h2.send_headers(right, HEADERS, end_stream=True)
    await client.flush()
    answer, body = client.answers[wrong]
    assert answer[":status"] == str(status)
    assert json.loads(body)["error"].endswith(".")
    assert client.answers[right][1] == b"GET /a "
    assert client.goaways == []


@in_loop
async def test_equal_requests_are_parsed_once_and_others_again() -> None:
    gate = Gate()
    gate.open()
    client = Client(gate)
    for number in range(40):
        await client.ask()
        await client.ask([*HEADERS, ("x", str(number))])
    assert [scope.headers.get("x") for scope in gate.scopes[1::2]] == list(map(str, range(40)))
    assert len(client.ended) == 80
    assert len(client.server._scopes) <= 4


# Abuse.


@in_loop
async def test_streams_above_the_limit_are_refused_and_count_until_their_tasks_end() -> None:
    gate = Gate()
    client = Client(gate)
    client.h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 1000
    client.h2.remote_settings.acknowledge()
    content = b""
    for number in range(MAX_STREAMS + 5):
        client.h2.send_headers(2 * number + 1, HEADERS, end_stream=True)
        content += client.h2.data_to_send()
    await client.write(content)
    await settle()
    client.receive()
    refused = [2 * number + 1 for number in range(MAX_STREAMS, MAX_STREAMS + 5)]
    assert client.resets == dict.fromkeys(refused, REFUSED_STREAM)
    client.h2.reset_stream(1, CANCEL)
    client.h2.send_headers(999, HEADERS, end_stream=True)
    await client.flush()
    assert client.resets[999] == REFUSED_STREAM
    gate.open()
    await settle()
    assert (await client.ask()) in client.ended
    assert len(client.ended) == MAX_STREAMS


async def give_up(client: Client, count: int, per_write: int = 100) -> None:
    """Open requests and reset each at once, until the connection ends."""
    content, stream = b"", client.h2.get_next_available_stream_id()
    headers = HeadersFrame(stream, flags=["END_HEADERS", "END_STREAM"])
    headers.data = client.h2.encoder.encode(HEADERS)
    for number in range(count):
        headers.stream_id = stream + 2 * number
        content += headers.serialize()
        content += RstStreamFrame(headers.stream_id, error_code=CANCEL).serialize()
        if number == 0:
            client.h2.encoder.encode(HEADERS)
            headers.data = client.h2.encoder.encode(HEADERS)
    await client.flush()
    for begin in range(0, len(content), per_write * 35):
        if client.transport.has_ended:
            break
        await client.write(content[begin : begin + per_write * 35])


@in_loop
async def test_requests_that_are_given_up_at_once_never_reach_the_front() -> None:
    gate = Gate()
    client = Client(gate)
    await give_up(client, 300)
    assert gate.streams == []
    assert client.goaways == []


@in_loop
async def test_a_rapid_reset_is_asked_to_connect_again_and_then_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CVE-2023-44487."""
    monkeypatch.setattr(module, "_LATE_RESETS", 1000)
    client = Client()
    await give_up(client, 4000)
    (all_streams, _), (_, code) = client.goaways
    assert all_streams == 2**31 - 1
    assert code == ENHANCE_YOUR_CALM
    assert client.transport.has_ended


@pytest.mark.parametrize(
    "frame",
    [
        PingFrame(0, opaque_data=b"12345678"),
        SettingsFrame(0),
        DataFrame(1, b""),
    ],
    ids=lambda frame: type(frame).__name__,
)
@in_loop
async def test_a_flood_of_what_costs_nothing_ends_the_connection(frame: Any) -> None:
    client = Client(silent)
    client.h2.send_headers(1, POST)
    await client.flush()
    content = frame.serialize() * 100
    for _ in range(100):
        if client.transport.has_ended:
            break
        await client.write(content)
    assert [code for _, code in client.goaways] == [ENHANCE_YOUR_CALM]


@pytest.mark.parametrize(
    "frame",
    [WindowUpdateFrame(0, window_increment=1), PriorityFrame(1, depends_on=3), SettingsFrame(0)],
    ids=lambda frame: type(frame).__name__,
)
@in_loop
async def test_small_frames_are_worked_off_in_turns(frame: Any) -> None:
    client = Client()
    await client.flush()
    worked: list[int] = []
    receive = client.server._h2.receive_data
    client.server._h2.receive_data = lambda data: worked.append(len(data)) or receive(data)  # type: ignore
    content = frame.serialize() * 900
    await client.write(content)
    assert client.transport.is_paused
    while client.transport.is_paused:
        await asyncio.sleep(0)
    assert sum(worked) == len(content)
    assert max(worked) == PER_TURN // 4 * len(frame.serialize())


@in_loop
async def test_connections_with_much_to_read_share_the_time_of_one() -> None:
    worked: list[int] = []

    class CountingTurns(Turns):
        def spend(self, cost: int) -> None:
            worked.append(cost)
            super().spend(cost)

    turns = CountingTurns()
    clients = [Client(turns=turns) for _ in range(8)]
    for client in clients:
        await client.flush()
    worked.clear()
    frame = PriorityFrame(1, depends_on=3).serialize()
    for client in clients:
        client.server.data_received(frame * 2000)
    assert turns.waiting == 8
    assert sum(worked) <= PER_TURN + 4
    worked.clear()
    await asyncio.sleep(0)
    assert len(worked) == 8  # all of them are served in each turn
    while any(client.transport.is_paused for client in clients):
        assert sum(worked) <= PER_TURN + 4
        worked.clear()
        await asyncio.sleep(0)
    assert turns.waiting == 0


@in_loop
async def test_what_has_to_be_confirmed_waits_while_the_client_does_not_read() -> None:
    client = Client()
    await client.flush()
    client.transport.limit = len(client.transport.output) + 1000
    for _ in range(5):
        with_pings = PingFrame(0, opaque_data=b"12345678").serialize() * 128
        if not client.transport.is_paused:
            await client.write(with_pings)
    assert client.transport.is_paused
    assert len(client.transport.output) < client.transport.limit + 128 * 17 + 17


@pytest.mark.parametrize("kind", ["small", "large", "empty"])
@in_loop
async def test_headers_without_an_end_end_the_connection(kind: str) -> None:
    size = {"small": 100, "large": 16_384, "empty": 0}[kind]
    client = Client()
    await client.flush()
    begin = HeadersFrame(1, bytes(size)).serialize()
    for frame in [begin, *[ContinuationFrame(1, bytes(size)).serialize()] * 100]:
        if not client.transport.has_ended:
            await client.write(frame)
    ((_, code),) = client.goaways
    assert code == (ENHANCE_YOUR_CALM if kind == "large" else PROTOCOL_ERROR)


@in_loop
async def test_a_bomb_of_headers_ends_the_connection() -> None:
    client = Client()
    bomb = HeadersFrame(1, flags=["END_HEADERS", "END_STREAM"])
    bomb.data = client.h2.encoder.encode([*HEADERS, ("x", "y" * 4000)]) + b"\xbe" * 1000
    await client.flush()
    await client.write(bomb.serialize())
    assert [code for _, code in client.goaways] == [ENHANCE_YOUR_CALM]


@in_loop
async def test_a_frame_that_is_too_large_ends_the_connection_before_it_has_come() -> None:
    client = Client()
    await client.flush()
    await client.write((16_385).to_bytes(3, "big") + bytes(6))
    assert client.goaways == [(0, FRAME_SIZE_ERROR)]


# The end.


@in_loop
async def test_a_client_is_let_go_without_the_loss_of_a_request() -> None:
    gate = Gate()
    client = Client(gate)
    await client.ask()
    client.server.retire()
    client.server.retire()
    assert client.goaways == [(2**31 - 1, NO_ERROR)]
    client.h2.send_headers(3, HEADERS, end_stream=True)  # it has not read that yet
    await client.answer_pings()
    assert client.goaways == [(2**31 - 1, NO_ERROR), (3, NO_ERROR)]
    client.h2.send_headers(5, HEADERS, end_stream=True)
    await client.flush()
    assert client.resets == {5: REFUSED_STREAM}
    assert not client.transport.has_ended
    gate.open()
    await settle()
    client.receive()
    assert client.ended == [1, 3]
    assert client.transport.has_ended


@in_loop
async def test_an_idle_client_that_is_let_go_leaves_with_its_pong() -> None:
    client = Client()
    await client.ask()
    assert client.server.is_idle
    client.server.retire()
    assert not client.server.is_idle  # a request may be on its way
    await client.answer_pings()
    assert client.goaways[1] == (1, NO_ERROR)
    assert client.transport.has_ended
    assert client.server.is_closing


@in_loop
async def test_nothing_is_sent_after_the_end_that_a_pong_brings() -> None:
    client = Client()
    client.h2.send_headers(1, POST)
    await client.flush()
    client.h2.reset_stream(1, CANCEL)
    await client.flush()
    client.server.retire()
    client.server._h2.ping(b"12345678")
    client.server._is_to_write = True
    asyncio.get_running_loop().call_soon(client.server._write)
    pong = PingFrame(0, opaque_data=b"leaving?", flags=["ACK"]).serialize()
    client.h2.send_headers(3, HEADERS, end_stream=True)
    late = client.h2.data_to_send() + PingFrame(0, opaque_data=b"12345678").serialize()
    client.transport.protocol.data_received(pong + late)
    assert client.transport.has_ended
    await settle()  # the transport asserts it


@in_loop
async def test_hang_up_answers_what_is_open() -> None:
    gate = Gate()
    client = Client(gate)
    await client.ask()
    client.server.hang_up()
    client.server.hang_up()
    assert client.goaways == [(1, NO_ERROR)]
    gate.open()
    await settle()
    client.receive()
    assert client.ended == [1]
    assert client.transport.has_ended


@in_loop
async def test_a_client_that_says_goaway_gets_its_answers() -> None:
    gate = Gate()
    client = Client(gate)
    await client.ask()
    await client.write(GoAwayFrame(0).serialize())
    assert not client.transport.has_ended
    gate.open()
    await settle()
    client.receive()
    assert client.ended == [1]
    assert client.transport.has_ended


@in_loop
async def test_a_client_that_closes_its_side_gets_its_answers() -> None:
    gate = Gate()
    client = Client(gate)
    await client.ask()
    assert client.server.eof_received()
    gate.open()
    await settle()
    client.receive()
    assert client.ended == [1]
    assert client.transport.is_closed


@in_loop
async def test_the_end_of_an_idle_clients_side_is_that_of_the_connection() -> None:
    client = Client()
    await client.ask()
    assert not client.server.eof_received()


@in_loop
async def test_the_rest_of_a_connection_ends_a_second_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.http.carrier.LINGER_S", 0.01)
    client = Client()
    await client.ask()
    client.transport.unsent = 1
    client.server.hang_up()
    await client.write(b"ignored")
    await asyncio.sleep(0.05)
    assert not client.transport.is_aborted
    client.transport.unsent = 0
    await asyncio.sleep(0.05)
    assert client.transport.is_aborted


@in_loop
async def test_an_answer_after_the_loss_of_its_connection_goes_nowhere() -> None:
    gate = Gate()
    client = Client(gate)
    await client.ask()
    await client.ask(POST, b"body")
    client.server.connection_lost(None)
    before = client.transport.output
    gate.open()
    await settle()
    assert client.transport.output == before
    assert client.server.request is None


@in_loop
async def test_reset_drops_what_is_not_sent() -> None:
    client = Client()
    await client.ask()
    client.server.reset()
    assert client.transport.is_aborted
    assert client.transport.options


# The rules of time.


@in_loop
async def test_a_client_without_a_request_is_late_after_the_header_timeout() -> None:
    client = Client()
    await client.flush()
    server, settings = client.server, client.settings
    assert server.late(server.waits_since + settings.header_timeout - 1, settings) == ""
    assert server.late(server.waits_since + settings.header_timeout + 1, settings) == "headers"


@in_loop
async def test_a_header_block_without_its_end_is_late_after_the_header_timeout() -> None:
    client = Client()
    await client.ask()
    server, settings = client.server, client.settings
    now = server.waits_since
    assert server.late(now + settings.header_timeout + 1, settings) == ""
    await client.write(HeadersFrame(3, b"").serialize())
    for _ in range(3):
        await client.write(ContinuationFrame(3, b"").serialize())
    assert server.late(now + settings.header_timeout + 1, settings) == "headers"
    assert not server.is_idle


@in_loop
async def test_whole_frames_begin_the_time_again() -> None:
    client = Client()
    await client.ask()
    server, settings = client.server, client.settings
    ping = PingFrame(0, opaque_data=b"12345678").serialize()
    await client.write(ping[:5])
    server._unfinished_since -= settings.header_timeout
    await client.write(ping[5:] + ping[:5])
    assert server.late(server.waits_since + 1, settings) == ""


@in_loop
async def test_a_client_without_requests_ends_after_the_idle_timeout() -> None:
    client = Client()
    await client.ask()
    server, settings = client.server, client.settings
    assert server.late(server.waits_since + settings.idle_timeout + 1, settings) == "idle"


@in_loop
async def test_a_silent_client_gets_a_ping_and_ends_if_it_says_nothing() -> None:
    client = Client()
    await client.ask()
    server, settings = client.server, client.settings
    now = server.moved_at
    assert server.late(now + settings.keepalive_interval - 1, settings) == ""
    assert client.frames(PingFrame) == []
    now += settings.keepalive_interval + 1
    for _ in range(3):
        assert server.late(now, settings) == ""
    assert len(client.frames(PingFrame)) == 1
    late = now + settings.keepalive_timeout + 1
    assert server.late(late, settings) == "keepalive"
    await client.answer_pings()
    assert server.late(now + 1, settings) == ""  # after another PING
    assert server.late(late, settings) == ""


@in_loop
async def test_an_answer_that_nobody_reads_is_no_progress() -> None:
    client = Client(large(5000), window=1000)
    client.h2.send_headers(1, HEADERS, end_stream=True)
    await client.flush()
    server = client.server
    assert server.request is not None
    server.note_progress(100.0)
    assert (server.unsent, server.unsent_since) == (4000, 100.0)
    server.note_progress(200.0)
    assert server.unsent_since == 100.0
    client.h2.increment_flow_control_window(1000, 1)
    await client.flush()
    server.note_progress(300.0)
    assert (server.unsent, server.unsent_since) == (3000, 300.0)


@in_loop
async def test_an_answer_that_stalls_while_others_move_ends_alone() -> None:
    client = Client(large(5000), window=1000)
    for stream in (1, 3):
        client.h2.send_headers(stream, HEADERS, end_stream=True)
    await client.flush()
    server = client.server
    now = server._streams[1].moved_at
    server.note_progress(now + 1)
    client.h2.increment_flow_control_window(1000, 3)
    await client.flush()
    server._streams[3].moved_at = now + BODY_TIMEOUT
    server.note_progress(now + BODY_TIMEOUT + 1)
    await settle()
    client.receive()
    assert client.resets == {1: CANCEL}
    assert list(server._streams) == [3]


@in_loop
async def test_a_socket_that_stalls_costs_the_largest_answer_before_the_connection() -> None:
    client = Client(large(200_000), window=1 << 20)
    await client.flush()
    now = 0.0
    client.budget = client.server.budget = Budget(1 << 22, clock=lambda: now)
    client.h2.increment_flow_control_window(1 << 20)
    await client.flush()
    client.transport.limit = len(client.transport.output) + 1000
    client.h2.send_headers(1, HEADERS, end_stream=True)
    await client.write(client.h2.data_to_send())
    await settle()
    client.h2.send_headers(3, HEADERS, end_stream=True)
    assert client.server.is_write_paused
    for _ in range(20):
        now += SWEEP_S
        client.budget.sweep()
    client.budget.refusal("http")
    now += SWEEP_S
    client.budget.sweep()
    assert not client.transport.is_aborted
    assert client.server.request is None  # the answer has given way
    for _ in range(20):
        now += SWEEP_S
        client.budget.sweep()
    client.budget.refusal("http")
    client.budget.sweep()
    assert client.transport.is_aborted
