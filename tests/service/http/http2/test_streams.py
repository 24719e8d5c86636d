"""A request and its body, with a connection that remembers what it is told."""

from __future__ import annotations

import asyncio

import pytest

from service.http.exchange import Ended
from service.http.http1.heads import Malformed
from service.http.http2.streams import RequestScope, Stream
from tests.service.http.transport import in_loop, settle

PSEUDO = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/a?b"), (b":authority", b"h")]


class Connection:
    scheme, client, server, client_name = "https", "c:1", "s:2", "name"

    def __init__(self) -> None:
        self.told: list[object] = []

    def read(self, stream: Stream) -> None:
        self.told.append("read")

    def send_continue(self, stream: Stream) -> None:
        self.told.append("continue")

    def answer(
        self, stream: Stream, status: int, headers: list[tuple[str, str]], body: bytes
    ) -> None:
        self.told.append((status, headers, body))


def stream_of(connection: Connection) -> Stream:
    return Stream(1, connection, 0.0)


def test_a_scope_has_what_the_connection_and_the_headers_say() -> None:
    scope = RequestScope([*PSEUDO, (b"a", b"1"), (b"a", b"2")], Connection())
    assert (scope.method, scope.path, scope.query_string) == ("GET", "/a", "b")
    assert (scope.scheme, scope.authority, scope.http_version) == ("https", "h", "2")
    assert (scope.client, scope.server, scope.certificate) == ("c:1", "s:2", "name")
    assert scope.headers.get_all("a") == ["1", "2"]


def test_options_may_ask_about_everything() -> None:
    scope = RequestScope(
        [(b":method", b"OPTIONS"), PSEUDO[1], (b":path", b"*"), PSEUDO[3]], Connection()
    )
    assert scope.path == "*"


def test_more_than_100_headers_are_too_many() -> None:
    RequestScope([*PSEUDO, *[(b"a", b"1")] * 100], Connection())
    with pytest.raises(Malformed) as caught:
        RequestScope([*PSEUDO, *[(b"a", b"1")] * 101], Connection())
    assert caught.value.status == 431


@in_loop
async def test_a_body_is_read_in_pieces_as_they_come() -> None:
    connection = Connection()
    stream = stream_of(connection)
    pieces: list[bytes] = []

    async def read() -> None:
        pieces.extend([piece async for piece in stream])

    reading = asyncio.create_task(read())
    for piece in (b"a", b"bc"):
        await settle()
        stream.received += piece
        stream.wake()
        stream.wake()
    await settle()
    assert not reading.done()
    stream.is_complete = True
    stream.wake()
    await reading
    assert pieces == [b"a", b"bc"]
    assert connection.told == ["read", "read"]


@in_loop
async def test_a_whole_body_is_read_at_once_and_again() -> None:
    stream = stream_of(Connection())
    stream.received += b"body"
    stream.take_whole()
    assert stream.whole is None
    stream.is_complete = True
    stream.take_whole()
    assert stream.whole == await stream() == b"body"
    assert [piece async for piece in stream] == [b"body"]


@in_loop
async def test_the_begin_of_a_body_that_is_cut_short_can_be_read() -> None:
    stream = stream_of(Connection())
    stream.received += b"half"
    stream.is_cut = True
    pieces = aiter(stream)
    assert await anext(pieces) == b"half"
    with pytest.raises(Ended):
        await anext(pieces)


@in_loop
async def test_a_client_is_asked_once_for_its_body_and_only_if_it_is_wanted() -> None:
    connection = Connection()
    stream = stream_of(connection)
    stream.expects_continue = True
    reading = asyncio.create_task(stream())
    await settle()
    assert connection.told == ["continue"]
    stream.received += b"a"
    stream.wake()
    await settle()
    assert connection.told == ["continue", "read"]
    stream.is_complete = True
    stream.wake()
    assert await reading == b"a"


def test_an_answer_goes_to_the_connection() -> None:
    connection = Connection()
    stream_of(connection).response_bytes(200, [("a", "b")], b"body")
    assert connection.told == [(200, [("a", "b")], b"body")]
