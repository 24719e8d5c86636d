"""The rules of time, each by its clock, on a connection."""

from __future__ import annotations

import pytest

from service.grpc.http2 import frames
from service.grpc.http2.events import CallCancelled
from service.grpc.http2.headers import OK
from tests.service.grpc.http2.client import (
    LIMITS,
    answer,
    block,
    call,
    closing,
    connection,
    data,
    described,
    headers,
    kinds,
    message,
    opened_stream,
    sent,
    unopened,
)


def test_a_late_message_ends_its_call_and_no_other() -> None:
    opened = connection()
    opened_stream(opened, 1)
    opened.receive(headers(3) + data(3, message(b"abc")[:4]), 1.0)
    opened.receive(call(5, b"answered later"), 1.0)
    opened.receive(headers(7), 2.0)
    assert opened.tick(11.0) == []
    (event,) = opened.tick(11.5)
    assert (type(event), event.stream.id) == (CallCancelled, 3)
    fields, _ = answer(opened.data_to_send(), 3)
    assert fields["grpc-status"] == "3"
    assert fields["grpc-message"] == "The message did not arrive within 10 seconds (body_timeout)."


def test_a_late_preface_ends_the_connection() -> None:
    opened = unopened(LIMITS._replace(header_timeout=3.0))
    opened.receive(frames.PREFACE[:-1], 0.0)
    assert opened.tick(2.9) == []
    assert closing(opened) is None
    assert opened.tick(3.0) == []
    assert closing(opened) == (frames.PROTOCOL_ERROR, "no preface came")
    assert opened.reason == "headers"


@pytest.mark.parametrize(
    "begun",
    [
        frames.frame(frames.HEADERS, 0, 1, block()),
        headers(1)[:-1],
        frames.frame(frames.HEADERS, 0, 1, block()) + frames.FRAME_HEADER.pack(0, 9, 9, 0, 1),
    ],
)
def test_headers_that_trickle_end_the_connection(begun: bytes) -> None:
    opened = connection(LIMITS._replace(header_timeout=3.0))
    opened.receive(begun, 1.0)
    for now in (2.0, 3.0, 4.0):
        opened.receive(frames.frame(frames.CONTINUATION, 0, 1) if begun[4] == 0 else b"", now)
        assert opened.tick(now) == []
        assert closing(opened) is None
    assert opened.tick(5.0) == []
    code, reason = closing(opened) or (0, "")
    assert (code, "header_timeout" in reason) == (frames.ENHANCE_YOUR_CALM, True)


def test_headers_that_end_in_time_again_and_again_are_no_fault() -> None:
    opened = connection(LIMITS._replace(header_timeout=3.0))
    for index in range(20):
        stream_id, now = 2 * index + 1, float(index)
        opened.receive(frames.frame(frames.HEADERS, 0, stream_id, block()), now)
        opened.tick(now)
        rest = frames.frame(frames.CONTINUATION, frames.END_HEADERS, stream_id)
        opened.receive(rest + frames.reset(stream_id, frames.CANCEL), now + 0.5)
    assert not opened.closed


def test_a_connection_without_calls_ends_after_the_idle_timeout() -> None:
    """PINGs do not count: a client that keeps its connection alive does not use it."""
    opened = connection(LIMITS._replace(idle_timeout=100.0, keepalive_interval=0.0))
    opened.receive(call(1, b"one"), 10.0)
    opened.tick(50.0)  # the call is open for at least this long
    opened.receive(frames.reset(1, frames.CANCEL), 60.0)
    opened.receive(frames.frame(frames.PING, 0, 0, bytes(8)), 140.0)
    opened.tick(149.0)
    assert closing(opened) is None
    opened.tick(150.0)
    code, reason = closing(opened) or (1, "")
    assert (code, "idle_timeout" in reason, opened.reason) == (frames.NO_ERROR, True, "idle")


def test_a_connection_with_an_open_call_is_not_idle() -> None:
    opened = connection(LIMITS._replace(idle_timeout=100.0, keepalive_interval=0.0, max_age=0.0))
    opened_stream(opened)
    for now in range(0, 100_000, 50):
        opened.tick(float(now))
    assert not opened.closed


def test_silence_is_followed_by_a_ping_and_by_the_end_if_nothing_answers() -> None:
    opened = connection(LIMITS._replace(keepalive_interval=60.0, keepalive_timeout=20.0))
    opened_stream(opened)
    opened.tick(59.0)
    assert opened.data_to_send() == b""
    opened.tick(60.0)
    ((kind, flags, _, content),) = sent(opened.data_to_send())
    assert (kind, flags) == (frames.PING, 0)
    opened.receive(frames.frame(frames.PING, frames.ACK, 0, content), 70.0)
    opened.tick(80.0)
    opened.tick(129.0)
    assert opened.data_to_send() == b""
    opened.tick(130.0)
    assert [kind for kind, *_ in sent(opened.data_to_send())] == [frames.PING]
    opened.tick(149.0)
    assert closing(opened) is None
    (event,) = opened.tick(150.0)
    assert isinstance(event, CallCancelled)
    assert opened.reason == "keepalive"
    assert closing(opened) is not None


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_any_byte_answers_the_ping(seconds: float) -> None:
    """Also in the same step of the clock."""
    opened = connection(LIMITS._replace(keepalive_interval=60.0, keepalive_timeout=20.0))
    opened.tick(60.0)
    opened.receive(b"\0", 60.0 + seconds)
    opened.tick(100.0)
    assert not opened.closed


def test_no_ping_is_sent_if_the_interval_is_zero() -> None:
    opened = connection(LIMITS._replace(keepalive_interval=0.0, max_age=0.0))
    opened_stream(opened)
    opened.tick(1e6)
    assert opened.data_to_send() == b""


def test_an_old_connection_ends_without_losing_a_call() -> None:
    """6.8: what the client sends before it knows is still answered."""
    opened = connection(LIMITS._replace(max_age=100.0, grace=30.0, keepalive_interval=0.0))
    first = opened_stream(opened)
    assert opened.tick(99.0) == []
    assert opened.data_to_send() == b""
    assert opened.tick(100.0) == []
    (kind, _, _, announcement), (_, _, _, ping) = sent(opened.data_to_send())
    assert (kind, announcement[:8]) == (frames.GOAWAY, b"\x7f\xff\xff\xff" + bytes(4))
    second = opened_stream(opened, 3)
    opened.receive(frames.frame(frames.PING, frames.ACK, 0, ping), 101.0)
    ((kind, _, _, last),) = sent(opened.data_to_send())
    assert (kind, last[:8]) == (frames.GOAWAY, b"\0\0\0\3" + bytes(4))
    opened.receive(headers(5), 102.0)
    assert kinds(opened.data_to_send(), 5) == [frames.RST_STREAM]
    opened.finish(first, OK)
    assert opened.tick(120.0) == []
    assert not opened.closed
    opened.finish(second, OK)
    assert (opened.closed, opened.reason) == (True, "age")


@pytest.mark.parametrize("answers_the_ping", [True, False])
def test_calls_of_an_old_connection_end_after_the_grace(answers_the_ping: bool) -> None:
    opened = connection(LIMITS._replace(max_age=100.0, grace=30.0, keepalive_interval=0.0))
    stream = opened_stream(opened)
    opened.tick(100.0)
    (_, (_, _, _, ping)) = sent(opened.data_to_send())
    flags = frames.ACK if answers_the_ping else 0
    opened.receive(frames.frame(frames.PING, flags, 0, ping), 110.0)
    opened.data_to_send()
    assert opened.tick(129.0) == []
    assert opened.tick(130.0) == [CallCancelled(stream)]
    fields, _ = answer(opened.data_to_send(), 1)
    assert (fields["grpc-status"], "max_connection_age" in fields["grpc-message"]) == ("14", True)
    assert (opened.closed, opened.reason) == (True, "age")


def test_a_call_whose_answer_is_not_read_ends_after_the_body_timeout() -> None:
    """Also without a deadline; a peer that reads slowly is not cut off."""
    opened = connection(LIMITS._replace(keepalive_interval=0.0))
    opened.receive(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}), 0.0)
    slow, stuck = (opened.receive(call(number, b"x"), 0.0)[0].stream for number in (1, 3))
    for stream in (slow, stuck):
        opened.finish(stream, OK, b"answer")
    for now in (1.0, 6.0, 10.9):
        opened.receive(frames.window_update(1, 1), now)
        assert opened.tick(now) == []
    assert opened.tick(11.0) == [CallCancelled(stuck)]
    fields, content = answer(opened.data_to_send(), 3)
    assert (fields["grpc-status"], "body_timeout" in fields["grpc-message"]) == ("8", True)
    assert content == b""
    opened.receive(frames.window_update(1, 100), 12.0)
    assert answer(opened.data_to_send(), 1)[0]["grpc-status"] == "0"


def test_a_socket_that_is_not_read_gets_no_more_messages_and_ends() -> None:
    opened = connection(LIMITS._replace(keepalive_interval=0.0))
    stream = opened_stream(opened)
    opened.pause()
    assert not opened.send(stream, b"answer")
    assert kinds(opened.data_to_send(), 1) == [frames.HEADERS]
    opened.tick(1.0)
    opened.tick(10.9)
    assert not opened.closed
    opened.tick(11.0)
    assert (opened.closed, opened.reason) == (True, "unread")


def test_a_socket_that_is_read_again_gets_what_has_waited() -> None:
    opened = connection()
    stream = opened_stream(opened)
    opened.pause()
    opened.send(stream, b"answer")
    assert described(opened.resume()) == [("OutputDrained", 1)]
    assert answer(opened.data_to_send(), 1)[1] == message(b"answer")


def test_calls_of_a_peer_that_has_closed_its_side_end_after_the_grace() -> None:
    opened = connection(LIMITS._replace(grace=30.0, keepalive_interval=0.0))
    (event,) = opened.receive(call(1, b"one"), 0.0)
    assert opened.end_of_input(1.0) == []
    assert opened.tick(30.9) == []
    assert opened.tick(31.0) == [CallCancelled(event.stream)]
    assert answer(opened.data_to_send(), 1)[0]["grpc-status"] == "14"
    assert (opened.closed, opened.reason) == (True, "peer")
