from __future__ import annotations

import pytest

from service.grpc.http2 import frames
from service.grpc.http2.headers import OK
from service.grpc.http2.limits import Limits
from tests.service.grpc.http2.client import UNARY, block, call, closing, connection, goaway, headers


def call_and_reset(stream_id: int) -> bytes:
    return call(stream_id, b"") + frames.reset(stream_id, frames.CANCEL)


def test_resets_faster_than_answers_and_time_allow_are_a_rapid_reset_attack() -> None:
    """CVE-2023-44487: ten calls per millisecond, each reset at once."""
    opened = connection()
    asked_after = None
    for count in range(120_000):
        opened.receive(call_and_reset(2 * count + 1), count / 10_000)
        if opened.closed:
            break
        if asked_after is None and (output := opened.data_to_send()):
            assert goaway(output) == (frames.NO_ERROR, "too many calls given up")
            asked_after = count
    assert asked_after is not None
    assert 1000 < asked_after < 1200
    assert 101_000 < count < 113_000
    assert goaway(opened.data_to_send()) == (frames.ENHANCE_YOUR_CALM, "too many calls given up")


def test_a_peer_that_connects_again_after_too_many_resets_loses_no_call() -> None:
    """One client behind a proxy gives up calls at once; the call of another was just opened."""
    opened = connection()
    for count in range(1001):
        opened.receive(call_and_reset(2 * count + 1), 0.0)
    _, ping = opened.data_to_send(), frames.frame(frames.PING, frames.ACK, 0, b"leaving?")
    (event,) = opened.receive(call(2003, b"") + ping, 0.0)
    assert not opened.closed
    assert goaway(opened.data_to_send()) == (frames.NO_ERROR, "too many calls given up")
    opened.finish(event.stream, OK, b"answer")
    assert (opened.closed, opened.reason) == (True, "resets")
    assert b"answer" in opened.data_to_send()


def test_errors_of_streams_count_as_resets(monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2025-8671: a peer that breaks the rules makes the server reset its calls."""
    # The test above uses the real limit; this one takes a hundredth of its time.
    monkeypatch.setattr("service.grpc.http2.allowances._LATE_RESETS", 1000)
    opened = connection()
    for count in range(2_001):
        assert not opened.closed
        opened.data_to_send()
        stream_id = 2 * count + 1
        opened.receive(headers(stream_id) + frames.window_update(stream_id, 0), 0.0)
    assert goaway(opened.data_to_send()) == (frames.ENHANCE_YOUR_CALM, "too many calls given up")


@pytest.mark.parametrize("per_second", [100, 900])
def test_calls_given_up_at_once_at_an_ordinary_rate_go_on_for_ever(per_second: int) -> None:
    opened = connection()
    for count in range(20_000):
        opened.receive(call_and_reset(2 * count + 1), count / per_second)
    assert not opened.closed


def test_calls_given_up_at_their_deadline_go_on_at_any_rate() -> None:
    """Overload: 4,000 calls per second, each given up after 0.1 s, none of them answered."""
    opened = connection(Limits(max_message=1000, max_streams=1000, body_timeout=10.0))
    interval, timeout = 1 / 4000, 0.1
    in_flight = int(timeout / interval)
    for count in range(20_000):
        content = call(2 * count + 1, b"", block(UNARY, {"grpc-timeout": "100m"}))
        if count >= in_flight:
            content += frames.reset(2 * (count - in_flight) + 1, frames.CANCEL)
        opened.receive(content, count * interval)
    assert not opened.closed
    assert opened.data_to_send() == b""


def test_answered_calls_make_up_for_resets() -> None:
    opened = connection()
    for stream_id in range(1, 20_000, 4):
        opened.receive(call(stream_id, b"") + frames.reset(stream_id, frames.CANCEL), 0.0)
        (event,) = opened.receive(call(stream_id + 2, b""), 0.0)
        opened.finish(event.stream, OK, b"answer")
    assert not opened.closed


def test_pings_faster_than_the_allowance_end_the_connection() -> None:
    opened = connection()
    ping = frames.frame(frames.PING, 0, 0, bytes(8))
    opened.receive(ping * 1000, 0.0)
    assert not opened.closed
    opened.receive(ping, 0.0)
    assert closing(opened) == (frames.ENHANCE_YOUR_CALM, "too_many_pings")


def test_a_ping_per_answer_is_no_flood() -> None:
    """gRPC-Go measures the bandwidth with one."""
    opened = connection()
    ping = frames.frame(frames.PING, 0, 0, bytes(8))
    for index in range(5000):
        (event,) = opened.receive(call(2 * index + 1, b""), 0.0)
        opened.finish(event.stream, OK, b"answer")
        opened.receive(ping, 0.0)
    assert not opened.closed
