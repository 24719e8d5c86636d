"""What calls hold of the budget of bytes, on a connection."""

from __future__ import annotations

from service.core.budget import Budget
from service.grpc.http2 import frames
from service.grpc.http2.connection import Connection
from service.grpc.http2.events import MessageReceived
from service.grpc.http2.headers import OK
from service.grpc.http2.limits import Limits
from service.grpc.http2.pool import Pool
from tests.service.grpc.http2.client import (
    answer,
    budget,
    call,
    connection,
    data,
    described,
    headers,
    message,
    sent,
)

LARGE_LIMITS = Limits(max_message=1 << 24, max_streams=8, body_timeout=10.0)


def sharing(limit: int) -> tuple[Connection, Budget]:
    held = budget(limit)
    pool = Pool(max_connections=4, max_calls=1000, silence=1.0, budget=held)
    return connection(LARGE_LIMITS, pool), held


def half_sent(stream_id: int, size: int, part: int) -> bytes:
    return headers(stream_id) + data(stream_id, message(bytes(size))[:part])


def test_a_large_message_waits_until_another_is_answered() -> None:
    opened, held = sharing(1_000_000)
    assert opened.receive(half_sent(1, 600_000, 1000) + half_sent(3, 600_000, 1000), 0.0) == []
    granted = [number for kind, _, number, _ in sent(opened.data_to_send()) if kind == 8]
    assert granted == [1]
    rest = message(bytes(600_000))[1000:]
    pieces = [rest[start : start + 16_000] for start in range(0, len(rest), 16_000)]
    content = b"".join(data(1, piece) for piece in pieces) + data(1, b"", end=True)
    (event,) = opened.receive(content, 0.0)
    assert isinstance(event, MessageReceived)
    opened.data_to_send()
    opened.finish(event.stream, OK, b"answer")
    updates = [number for kind, _, number, _ in sent(opened.data_to_send()) if kind == 8]
    assert updates == [3]
    opened.receive(frames.reset(3, frames.CANCEL), 0.0)
    assert held.used == 0


def test_small_calls_get_through_beside_large_ones_that_wait() -> None:
    opened, _ = sharing(1_000_000)
    for stream_id in range(1, 9, 2):
        opened.receive(half_sent(stream_id, 700_000, 1000), 0.0)
    for stream_id in range(9, 2000, 2):
        (event,) = opened.receive(call(stream_id, bytes(10_000)), 0.0)
        opened.finish(event.stream, OK, b"answer")


def test_messages_that_fill_their_windows_and_wait_leave_room_to_small_calls() -> None:
    opened, held = sharing(1_200_000)
    for stream_id in (1, 3, 5):
        pieces = [data(stream_id, bytes(16_000))] * 11
        opened.receive(half_sent(stream_id, 800_000, 16_000) + b"".join(pieces), 0.0)
    assert 900_000 < held.used < 1_050_000
    (event,) = opened.receive(call(7, bytes(14_000)), 0.0)
    assert isinstance(event, MessageReceived)


def test_bytes_for_which_there_is_no_room_end_their_call_alone() -> None:
    opened, held = sharing(100_000)
    first = half_sent(1, 50_000, 16_000) + data(1, bytes(16_000)) + data(1, bytes(16_000))
    assert opened.receive(first, 0.0) == []
    second = half_sent(3, 60_000, 16_000) + b"".join(data(3, bytes(16_000)) for _ in range(3))
    assert opened.receive(second, 0.0) != []
    fields, _ = answer(opened.data_to_send(), 3)
    assert (fields["grpc-status"], "max_inflight_bytes" in fields["grpc-message"]) == ("8", True)
    assert held.used == 48_000
    end = data(1, message(bytes(50_000))[48_000:], end=True)
    assert described(opened.receive(end, 0.0))[0][:2] == ("MessageReceived", 1)


def test_answers_that_wait_beyond_the_budget_are_refused() -> None:
    opened, held = sharing(100_000)
    opened.receive(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}), 0.0)
    for stream_id in (1, 3):
        (event,) = opened.receive(call(stream_id, b"x"), 0.0)
        opened.finish(event.stream, OK, bytes(90_000))
    assert held.used == 90_005
    assert answer(opened.data_to_send(), 3)[0]["grpc-status"] == "8"
