"""A connection on bytes, without a socket. Source: RFC 9113; numbers are its sections."""

from __future__ import annotations

import gc
import itertools
import struct
import sys
from collections.abc import Callable
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.grpc.http2 import frames
from service.grpc.http2.connection import CONNECTION_WINDOW, Connection
from service.grpc.http2.events import CallCancelled, Event, MessageReceived
from service.grpc.http2.headers import OK, Status
from service.grpc.http2.limits import Limits
from service.grpc.http2.pool import Pool
from service.grpc.http2.stream import STREAM_WINDOW, State
from tests.service.grpc.http2.client import (
    LIMITS,
    START,
    STREAM,
    STREAMING,
    UNARY,
    answer,
    block,
    budget,
    call,
    chunks,
    connection,
    data,
    described,
    goaway,
    headers,
    kinds,
    literal_block,
    message,
    opened_stream,
    sent,
    unopened,
)

LARGE_LIMITS = Limits(max_message=1 << 24, max_streams=8, body_timeout=10.0)


# The life of a call.


def test_a_unary_call_goes_from_bytes_to_bytes() -> None:
    opened = connection()
    (event,) = opened.receive(call(1, b"request"), 0.0)
    assert described([event]) == [("MessageReceived", 1, 0, b"request")]
    assert not opened.has_output
    opened.finish(event.stream, OK, b"answer")
    fields, content = answer(opened.data_to_send(), 1)
    assert content == message(b"answer")
    assert (fields[":status"], fields["grpc-status"]) == ("200", "0")
    assert fields["x-request-id"] == "chosen"
    assert event.stream.state == State.CLOSED
    assert not opened.has_output


def test_a_streaming_call_reports_its_start_each_message_and_the_end() -> None:
    opened = connection()
    content = headers(1, STREAM) + data(1, message(b"one") + message(b"two", 1)[:4])
    events = opened.receive(content + data(1, message(b"two", 1)[4:], end=True), 0.0)
    assert described(events) == [
        ("CallStarted", 1),
        ("MessageReceived", 1, 0, b"one"),
        ("MessageReceived", 1, 1, b"two"),
        ("MessagesEnded", 1),
    ]
    stream = events[0].stream
    assert opened.send(stream, b"three")
    opened.finish(stream, OK)
    assert answer(opened.data_to_send(), 1)[1] == message(b"three")


def test_a_call_with_a_deadline_reports_its_start() -> None:
    (event,) = connection().receive(headers(1, block(UNARY, {"grpc-timeout": "2S"})), 3.0)
    assert type(event).__name__ == "CallStarted"
    assert event.stream.deadline == 5.0


def test_trailers_of_a_client_end_its_messages() -> None:
    opened = connection()
    content = headers(1, STREAM) + data(1, message(b"one"))
    trailers = headers(1, literal_block([("x-checksum", "1")]), frames.END_STREAM)
    events = opened.receive(content + trailers, 0.0)
    names = [name for name, *_ in described(events)]
    assert names == ["CallStarted", "MessageReceived", "MessagesEnded"]


def test_the_servers_preface_is_its_settings() -> None:
    """3.4."""
    output = unopened().data_to_send()
    kind, flags, stream_id, payload = sent(output)[0]
    assert (kind, flags, stream_id) == (frames.SETTINGS, 0, 0)
    settings = dict(frames.read_settings(payload))
    assert settings[frames.MAX_CONCURRENT_STREAMS] == LIMITS.max_streams
    assert settings[frames.INITIAL_WINDOW_SIZE] == STREAM_WINDOW


def test_a_call_that_is_finished_twice_has_one_answer() -> None:
    opened = connection()
    (event,) = opened.receive(call(1, b""), 0.0)
    opened.finish(event.stream, OK, b"answer")
    opened.data_to_send()
    opened.finish(event.stream, Status("INTERNAL", "late"))
    assert opened.data_to_send() == b""


def test_an_early_answer_asks_the_peer_to_stop_sending() -> None:
    """8.1."""
    opened = connection()
    stream = opened_stream(opened)
    opened.finish(stream, OK)
    *_, last = sent(opened.data_to_send())
    assert last == (frames.RST_STREAM, 0, 1, bytes(4))
    assert opened.receive(data(1, b"was on its way"), 0.0) == []
    assert not opened.closed


# Against an independent implementation.


def settle(client: h2.connection.H2Connection, opened: Connection) -> tuple[list[Event], list[Any]]:
    """Pass bytes both ways until both sides are silent; return the events of both."""
    ours: list[Event] = []
    theirs: list[Any] = []
    while True:
        to_server, to_client = client.data_to_send(), opened.data_to_send()
        if not to_server and not to_client:
            return ours, theirs
        ours += opened.receive(to_server, 0.0)
        for event in client.receive_data(to_client):
            theirs.append(event)
            if isinstance(event, h2.events.DataReceived):
                size = event.flow_controlled_length
                client.acknowledge_received_data(size, event.stream_id)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.integers(0, 200) | st.integers(STREAM_WINDOW // 2 - 9, STREAM_WINDOW + 9), max_size=4
    ),
    st.integers(1000, STREAM_WINDOW + 5000),
    st.integers(1, 100_000),
)
def test_messages_of_any_size_arrive_whole_both_ways(
    sizes: list[int], client_window: int, answer_size: int
) -> None:
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.local_settings = h2.settings.Settings(
        client=True,
        initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: client_window},
    )
    client.initiate_connection()
    opened = unopened(LARGE_LIMITS)
    settle(client, opened)
    client.send_headers(1, list(hpack.Decoder().decode(STREAM)))
    (start,), _ = settle(client, opened)
    stream = start.stream
    received = []
    for size in sizes:
        rest = message(bytes([size % 251]) * size)
        while rest:
            room = min(client.local_flow_control_window(1), client.max_outbound_frame_size)
            assert room > 0, "the server grants no window"
            client.send_data(1, rest[:room])
            rest = rest[room:]
            events, _ = settle(client, opened)
            for event in events:
                assert isinstance(event, MessageReceived)
                received.append(event.content)
                opened.message_read(stream)
            # What was read may have filled the window to its last byte.
            assert settle(client, opened)[0] == []
    assert received == [bytes([size % 251]) * size for size in sizes]
    client.end_stream(1)
    (ended,), _ = settle(client, opened)
    assert type(ended).__name__ == "MessagesEnded"
    is_sent = opened.send(stream, bytes(answer_size))
    drained, events = settle(client, opened)
    assert is_sent == (not drained)
    opened.finish(stream, OK)
    events += settle(client, opened)[1]
    content = b"".join(e.data for e in events if isinstance(e, h2.events.DataReceived))
    assert content == message(bytes(answer_size))
    assert isinstance(events[-1], h2.events.StreamEnded)


# However the bytes are split.

PIECES = st.lists(
    st.sampled_from(
        [
            call(1, b"first"),
            call(3, bytes(300), block(UNARY, {"x-request-id": "mine"})),
            headers(5, STREAM),
            data(5, message(b"one") + message(b"two") + b"\0\0"),
            data(5, b"\0\0\3abc", end=True),
            headers(7, block("/nothing")),
            headers(9, block(UNARY, {"content-type": "text/html"})),
            headers(11, block(UNARY, {"grpc-timeout": "1S"})),
            data(11, message(bytes(2000))[:100]),
            frames.reset(5, frames.CANCEL),
            frames.frame(frames.PING, 0, 0, b"12345678"),
            frames.frame(frames.PRIORITY, 0, 1, bytes(5)),
            frames.frame(0xBE, 0xFF, 0, b"of another version"),
            frames.frame(frames.HEADERS, 0, 13, block()[:5]),
            frames.frame(frames.CONTINUATION, frames.END_HEADERS, 13, block()[5:]),
            frames.settings({frames.INITIAL_WINDOW_SIZE: 7}),
            frames.window_update(0, 1000),
            frames.window_update(1, 1000),
            frames.window_update(0, 0),
            frames.goaway(0, 0, "bye"),
            b"\0\0\0",
        ]
    )
    | st.binary(max_size=20),
    max_size=20,
)


def run(content: bytes, cuts: list[int]) -> tuple[list[tuple[Any, ...]], bytes, bool]:
    """What a connection makes of bytes: events, output, and whether it is closed."""
    opened = unopened()
    events: list[Event] = []
    for chunk in chunks(content, cuts):
        events += opened.receive(chunk, 0.0)
    return described(events), opened.data_to_send(), opened.closed


@given(PIECES, st.lists(st.integers(0)))
def test_events_and_output_are_the_same_however_the_bytes_are_split(
    pieces: list[bytes], cuts: list[int]
) -> None:
    content = START + b"".join(pieces)
    assert run(content, cuts) == run(content, [])


@given(st.lists(st.binary(max_size=80)), st.booleans())
def test_arbitrary_bytes_raise_nothing(content: list[bytes], preface: bool) -> None:
    opened = connection() if preface else unopened()
    for chunk in content:
        opened.receive(chunk, 0.0)
        if opened.closed:
            assert goaway(opened.data_to_send()) is not None
            return


# Flow control.


def test_the_connections_window_opens_again_when_half_of_it_is_used() -> None:
    opened = connection(LARGE_LIMITS)
    piece = bytes(frames.DEFAULT_FRAME)
    updates = []
    for stream_id in range(1, 2 * CONNECTION_WINDOW // len(piece), 2):
        opened.receive(headers(stream_id) + data(stream_id, b"\0\0\0\xea\0" + piece[5:]), 0.0)
        updates += [f for f in sent(opened.data_to_send()) if f[0] == frames.WINDOW_UPDATE]
        if updates:
            break
    ((_, _, number, payload),) = updates
    assert number == 0
    assert CONNECTION_WINDOW // 2 <= struct.unpack(">I", payload)[0] <= CONNECTION_WINDOW


@pytest.mark.parametrize(
    "grant",
    [
        frames.window_update(1, 1000),
        frames.settings({frames.INITIAL_WINDOW_SIZE: 1000}),
    ],
)
def test_an_answer_that_waits_for_the_streams_window_resumes(grant: bytes) -> None:
    opened = connection()
    opened.receive(frames.settings({frames.INITIAL_WINDOW_SIZE: 3}), 0.0)
    stream = opened_stream(opened)
    assert not opened.send(stream, b"answer")
    output = opened.data_to_send()
    assert described(opened.receive(grant, 0.0)) == [("OutputDrained", 1)]
    assert answer(output + opened.data_to_send(), 1)[1] == message(b"answer")


def test_answers_that_wait_for_the_connections_window_resume() -> None:
    opened = connection(LARGE_LIMITS)
    opened.receive(frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 20}), 0.0)
    first, second = opened_stream(opened), opened_stream(opened, 3)
    assert not opened.send(first, bytes(frames.DEFAULT_WINDOW))
    opened.send(second, b"answer")
    opened.finish(second, OK)
    output = opened.data_to_send()
    assert kinds(output, 3) == [frames.HEADERS]
    assert described(opened.receive(frames.window_update(0, 1000), 0.0)) == [("OutputDrained", 1)]
    output += opened.data_to_send()
    assert len(answer(output, 1)[1]) == frames.DEFAULT_WINDOW + 5
    fields, content = answer(output, 3)
    assert (fields["grpc-status"], content) == ("0", message(b"answer"))


def test_a_large_answer_is_queued_in_parts_and_counts_until_it_is_written() -> None:
    pool = Pool(max_connections=8, max_calls=100, silence=1.0, budget=budget())
    opened = connection(LARGE_LIMITS, pool)
    window = frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 22})
    opened.receive(window + frames.window_update(0, 1 << 22), 0.0)
    first, second = opened_stream(opened), opened_stream(opened, 3)
    at_rest = pool.budget.used
    assert not opened.send(first, bytes(1 << 20))
    assert not opened.send(second, b"answer")
    assert pool.budget.answers == pool.budget.used - at_rest == (1 << 20) + 5 + 11
    output = b""
    sizes, events = [], []
    while opened.has_output:
        part = opened.data_to_send()
        sizes.append(len(part))
        output += part
        if opened.has_more:
            events += opened.send_more()
    assert max(sizes) < 600 * 1024
    assert described(events) == [("OutputDrained", 3), ("OutputDrained", 1)]
    assert answer(output, 1)[1] == message(bytes(1 << 20))
    assert answer(output, 3)[1] == message(b"answer")
    assert pool.budget.answers == 0


def test_frames_are_no_larger_than_the_peer_allows() -> None:
    opened = connection()
    opened.receive(frames.settings({frames.MAX_FRAME_SIZE: 20_000}), 0.0)
    stream = opened_stream(opened)
    opened.send(stream, bytes(50_000))
    sizes = [len(p) for kind, _, _, p in sent(opened.data_to_send()) if kind == frames.DATA]
    assert sizes == [20_000, 20_000, 10_005]


def test_a_failed_call_whose_answers_wait_is_granted_no_more_window() -> None:
    """Its peer could send forever, and every byte would be kept."""
    opened = connection()
    opened.receive(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}), 0.0)
    stream = opened_stream(opened)
    opened.send(stream, b"answer")
    opened.finish(stream, Status("INTERNAL", "failed"))
    opened.data_to_send()
    piece = data(1, bytes(STREAM_WINDOW // 12))
    assert opened.receive(piece * 12, 0.0) == []
    assert kinds(opened.data_to_send(), 1) == []
    assert opened.receive(data(1, b"x"), 0.0) == [CallCancelled(stream)]
    assert goaway(opened.data_to_send()) == (frames.FLOW_CONTROL_ERROR, "more data than allowed")


@pytest.mark.parametrize("path", [UNARY, STREAMING])
def test_the_end_of_a_request_after_its_failure_reports_nothing(path: str) -> None:
    opened = connection()
    opened.receive(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}), 0.0)
    events = opened.receive(headers(1, block(path, {"grpc-timeout": "1S"})), 0.0)
    opened.finish(events[0].stream, Status("INTERNAL", "failed"), b"answer")
    assert opened.receive(data(1, message(b"late"), end=True), 0.0) == []
    opened.receive(frames.window_update(1, 100), 0.0)
    assert kinds(opened.data_to_send(), 1) == [frames.HEADERS, frames.DATA, frames.HEADERS]


def test_trailers_larger_than_a_frame_continue_in_further_frames() -> None:
    opened = connection()
    stream = opened_stream(opened)
    text = "reason " * 8_000
    opened.finish(stream, Status("INTERNAL", text))
    output = opened.data_to_send()
    position = 0
    while position < len(output):
        high, low, *_ = frames.FRAME_HEADER.unpack_from(output, position)
        assert high << 8 | low <= frames.DEFAULT_FRAME
        position += frames.FRAME_HEADER.size + (high << 8 | low)
    assert answer(output, 1)[0]["grpc-message"] == text


def test_trailers_are_no_larger_than_the_peers_header_list() -> None:
    opened = connection()
    opened.receive(frames.settings({frames.MAX_HEADER_LIST_SIZE: 1000}), 0.0)
    opened.finish(opened_stream(opened), Status("INTERNAL", "reason " * 10_000))
    ((_, _, _, payload),) = (f for f in sent(opened.data_to_send()) if f[0] == frames.HEADERS)
    fields = hpack.Decoder().decode(payload)
    assert 990 < sum(len(name) + len(value) + 32 for name, value in fields) <= 1000


@pytest.mark.parametrize("finished", [False, True])
def test_a_deadline_ends_a_call_whose_answer_waits_for_a_window(finished: bool) -> None:
    opened = connection()
    opened.receive(frames.settings({frames.INITIAL_WINDOW_SIZE: 3}), 0.0)
    header_block = block(STREAMING, {"grpc-timeout": "1S"})
    events = opened.receive(headers(1, header_block, frames.END_STREAM), 0.0)
    stream = events[0].stream
    opened.send(stream, b"answer")
    if finished:
        opened.finish(stream, OK)
    opened.expire(stream, Status("DEADLINE_EXCEEDED", "late"))
    fields, content = answer(opened.data_to_send(), 1)
    assert (fields["grpc-status"], content) == ("4", message(b"answer")[:3])
    assert stream.state == State.CLOSED
    assert opened.receive(frames.window_update(1, 100) + frames.window_update(0, 100), 1.0) == []
    assert opened.data_to_send() == b""


def test_a_finished_answer_with_a_deadline_that_has_waited_is_reported() -> None:
    opened = connection()
    opened.receive(frames.settings({frames.INITIAL_WINDOW_SIZE: 3}), 0.0)
    events = opened.receive(call(1, b"", block(UNARY, {"grpc-timeout": "1S"})), 0.0)
    opened.finish(events[0].stream, OK, b"answer")
    assert described(opened.receive(frames.window_update(1, 100), 0.0)) == [("CallEnded", 1)]


# Work, counted rather than timed.


def waiting_calls(count: int, window: int) -> Connection:
    """A connection with calls whose answers of 100 bytes wait for a window."""
    opened = connection(Limits(max_message=1000, max_streams=count, body_timeout=10.0))
    opened.receive(frames.settings({frames.INITIAL_WINDOW_SIZE: window}), 0.0)
    streams = [opened_stream(opened, 2 * index + 1) for index in range(count)]
    if window:
        # One more takes the whole window of the connection.
        streams[0].enlarge_window(1 << 20)
        opened.send(streams[0], bytes(frames.DEFAULT_WINDOW - len(message(b""))))
    for stream in streams:
        assert not opened.send(stream, bytes(100 - len(message(b""))))
    opened.data_to_send()
    return opened


def function_calls(work: Callable[[], object]) -> int:
    """Do some work, and count the Python functions that it calls."""
    events: list[str] = []

    def note(frame: object, event: str, argument: object) -> None:
        events.append(event)

    before = sys.getprofile()
    gc.disable()  # its callbacks, as Hypothesis has one, would count
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
        gc.enable()
    return events.count("call")


@pytest.mark.parametrize(
    "frame",
    [
        frames.settings({}),
        frames.settings({frames.MAX_FRAME_SIZE: 20_000}),
        frames.settings({frames.INITIAL_WINDOW_SIZE: 1})
        + frames.settings({frames.INITIAL_WINDOW_SIZE: 0}),
        frames.window_update(0, 1),
    ],
)
def test_a_flood_looks_at_each_waiting_call_once_per_read(frame: bytes) -> None:
    few, many = waiting_calls(1, window=0), waiting_calls(300, window=0)
    least = function_calls(lambda: few.receive(frame * 5000, 0.0))
    assert function_calls(lambda: many.receive(frame * 5000, 0.0)) <= least + 2 * 300
    assert not many.closed


def test_a_window_update_looks_at_no_more_calls_than_it_lets_send() -> None:
    few, many = waiting_calls(2, window=1000), waiting_calls(300, window=1000)
    update = frames.window_update(0, 1)
    least = function_calls(lambda: few.receive(update, 0.0))
    assert function_calls(lambda: many.receive(update, 0.0)) == least


def test_calls_that_wait_for_the_connections_window_take_turns() -> None:
    opened = waiting_calls(3, window=1000)
    turns = []
    for _ in range(6):
        opened.receive(frames.window_update(0, 10), 0.0)
        turns += [stream_id for _, _, stream_id, _ in sent(opened.data_to_send())]
    assert turns == [1, 3, 5, 1, 3, 5]


def test_small_frames_of_a_large_message_copy_nothing_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied: list[int] = []

    def copy_slice(buffer: bytes | bytearray, start: int, end: int) -> bytes:
        copied.append(end - start)
        return frames.copy_slice(buffer, start, end)

    monkeypatch.setattr("service.grpc.http2.stream.copy_slice", copy_slice)
    opened = connection(Limits(max_message=1 << 20, max_streams=8, body_timeout=10.0))
    stream = opened_stream(opened)
    whole = message(bytes(30_000))
    opened.receive(data(1, whole[:1]) + data(1, whole[1:2]), 0.0)
    buffer = stream._buffer
    for start in range(2, len(whole) - 1, 1000):
        pieces = [bytes([byte]) for byte in whole[start : min(start + 1000, len(whole) - 1)]]
        assert opened.receive(b"".join(data(1, piece) for piece in pieces), 0.0) == []
        assert stream._buffer is buffer  # grown in place
    (event,) = opened.receive(data(1, whole[-1:]), 0.0)
    assert isinstance(event, MessageReceived)
    assert event.content == bytes(30_000)
    assert copied == [30_000]


@pytest.mark.parametrize("sizes", [[16_000], [1], [1, 1024], [1023, 1024, 7]], ids=str)
def test_a_message_above_the_window_is_kept_in_few_parts(sizes: list[int]) -> None:
    """Objects of a byte each would hold forty times the bytes that are counted."""
    opened = connection(Limits(max_message=1 << 20, max_streams=8, body_timeout=10.0))
    opened.receive(headers(1), 0.0)
    stream = opened._streams[1]
    content = bytes(range(256)) * 600
    whole = message(content)
    opened.receive(data(1, whole[:16_000]), 0.0)
    at, turn = 16_000, itertools.cycle(sizes)
    while at < len(whole):
        end = min(at + next(turn), len(whole))
        events = opened.receive(data(1, whole[at:end], end=end == len(whole)), 0.0)
        at = end
        assert stream.arrived in (at, 0)
        assert len(stream._parts or ()) <= 3 + 2 * at // 1024
    (event,) = events
    assert isinstance(event, MessageReceived)
    assert event.content == content


# What is wrong with a call ends that call.


@pytest.mark.parametrize(
    ("content", "status", "word"),
    [
        (data(1, message(bytes(1001))[:5]), "8", "1000 bytes"),
        (data(1, message(b"abc") + b"x"), "13", "one whole message"),
        (data(1, b"", end=True), "13", "one whole message"),
    ],
)
def test_a_wrong_message_is_answered_with_its_reason(
    content: bytes, status: str, word: str
) -> None:
    opened = connection()
    (event,) = opened.receive(headers(1) + content, 0.0)
    assert isinstance(event, CallCancelled)
    fields, _ = answer(opened.data_to_send(), 1)
    assert fields["grpc-status"] == status
    assert word in fields["grpc-message"]
    assert described(opened.receive(call(3, b"next"), 0.0)) == [("MessageReceived", 3, 0, b"next")]


def test_an_unknown_method_is_unimplemented() -> None:
    opened = connection()
    assert opened.receive(call(1, b"", block("/nothing")), 0.0) == []
    fields, _ = answer(opened.data_to_send(), 1)
    assert (fields["grpc-status"], fields["grpc-message"]) == ("12", "There is no method /nothing.")


@pytest.mark.parametrize(("header", "status"), [(":method", "405"), ("content-type", "415")])
def test_what_is_not_grpc_gets_an_http_status(header: str, status: str) -> None:
    opened = connection()
    assert opened.receive(call(1, b"", block(UNARY, {header: "x"})), 0.0) == []
    assert answer(opened.data_to_send(), 1)[0] == {":status": status}


def test_more_calls_than_allowed_are_refused_unprocessed() -> None:
    opened = connection()
    last = 2 * LIMITS.max_streams + 1
    for stream_id in range(1, last + 1, 2):
        opened.receive(headers(stream_id), 0.0)
    refusal = (frames.RST_STREAM, 0, last, struct.pack(">I", frames.REFUSED_STREAM))
    assert sent(opened.data_to_send()) == [refusal]


def test_a_reset_cancels_its_call_and_nothing_is_sent_on_it() -> None:
    opened = connection()
    stream = opened_stream(opened)
    assert opened.receive(frames.reset(1, frames.CANCEL), 0.0) == [CallCancelled(stream)]
    assert opened.send(stream, b"answer")
    opened.finish(stream, OK)
    opened.message_read(stream)
    assert opened.data_to_send() == b""


# What is wrong with the connection ends the connection.


@pytest.mark.parametrize(
    ("content", "code", "word"),
    [
        (frames.frame(frames.PING, 0, 0, b"short"), frames.FRAME_SIZE_ERROR, "PING"),
        (frames.frame(frames.PING, 0, 1, bytes(8)), frames.PROTOCOL_ERROR, "PING"),
        (frames.frame(frames.SETTINGS, 0, 1), frames.PROTOCOL_ERROR, "SETTINGS"),
        (frames.settings({frames.INITIAL_WINDOW_SIZE: 2**31}), frames.FLOW_CONTROL_ERROR, "window"),
        (frames.settings({frames.MAX_FRAME_SIZE: 2**24}), frames.PROTOCOL_ERROR, "frame size"),
        (frames.window_update(0, 0), frames.PROTOCOL_ERROR, "window"),
        (frames.window_update(0, 2**31 - 1), frames.FLOW_CONTROL_ERROR, "window"),
        (data(1, b""), frames.PROTOCOL_ERROR, "data"),
        (frames.reset(1, 0), frames.PROTOCOL_ERROR, "reset"),
        (frames.frame(frames.PUSH_PROMISE, 0, 1), frames.PROTOCOL_ERROR, "push"),
        (headers(2), frames.PROTOCOL_ERROR, "number"),
        (call(3, b"") + headers(1), frames.PROTOCOL_ERROR, "number"),
    ],
)
def test_a_breach_of_http2_is_answered_with_goaway(content: bytes, code: int, word: str) -> None:
    opened = connection()
    opened.receive(content, 0.0)
    assert opened.closed
    ended = goaway(opened.data_to_send())
    assert ended is not None
    assert ended[0] == code
    assert word in ended[1]
    assert opened.receive(call(99, b""), 0.0) == []


def test_the_end_of_a_connection_cancels_its_calls() -> None:
    opened = connection()
    stream = opened_stream(opened)
    assert opened.receive(headers(2), 0.0) == [CallCancelled(stream)]
    assert stream.state == State.CLOSED


def test_settings_that_overflow_a_window_end_the_connection() -> None:
    """6.9.2."""
    opened = connection()
    opened_stream(opened)
    opened.receive(frames.window_update(1, 2**31 - 1 - frames.DEFAULT_WINDOW), 0.0)
    assert not opened.closed
    opened.receive(frames.settings({frames.INITIAL_WINDOW_SIZE: frames.DEFAULT_WINDOW + 1}), 0.0)
    assert opened.closed


# Sharing a worker with others.


def test_a_connection_that_gives_way_ends_its_calls_with_unavailable() -> None:
    pool = Pool(max_connections=1, max_calls=8, silence=1.0, budget=budget())
    opened = connection(pool=pool)
    assert pool.add(opened, "one", 0.0)
    stream = opened_stream(opened)
    woken: list[bool] = []
    opened.wake = lambda: woken.append(opened.closed)
    assert pool.add(connection(pool=pool), "two", 1.0)
    assert woken == [True]
    assert opened.events() == [CallCancelled(stream)]
    output = opened.data_to_send()
    fields, _ = answer(output, 1)
    assert (fields["grpc-status"], "max_connections" in fields["grpc-message"]) == ("14", True)
    assert (goaway(output) or (1, ""))[0] == frames.NO_ERROR
    assert (opened.reason, pool.open_calls) == ("displaced", 0)


def test_calls_above_the_share_of_a_connection_are_refused_unprocessed() -> None:
    pool = Pool(max_connections=2, max_calls=20, silence=1.0, budget=budget())
    opened = connection(LIMITS._replace(max_streams=1000), pool)
    opened.receive(b"".join(headers(stream_id) for stream_id in range(1, 201, 2)), 0.0)
    refused = [kind for kind, *_ in sent(opened.data_to_send())]
    assert refused == [frames.RST_STREAM] * 90
    assert pool.open_calls == opened.open_calls == 10
    opened.receive(frames.reset(1, frames.CANCEL), 1.0)
    assert opened.receive(call(201, b"next"), 1.0) != []


@pytest.mark.parametrize("end", ["finish", "expire", "reset", "lose", "fail"])
def test_a_call_that_ends_is_no_longer_counted(end: str) -> None:
    pool = Pool(max_connections=2, max_calls=20, silence=1.0, budget=budget())
    opened = connection(pool=pool)
    stream = opened_stream(opened)
    assert pool.open_calls == 1
    if end == "finish":
        opened.finish(stream, OK)
    elif end == "expire":
        opened.expire(stream, Status("DEADLINE_EXCEEDED", "late"))
    elif end == "reset":
        opened.receive(frames.reset(1, frames.CANCEL), 0.0)
    elif end == "fail":
        opened.receive(headers(2), 0.0)
    opened.lose()
    opened.lose()
    assert pool.open_calls == 0


# Stopping.


def test_a_stopping_connection_answers_what_it_has_and_refuses_the_rest() -> None:
    opened = connection()
    (event,) = opened.receive(call(1, b""), 0.0)
    opened.stop()
    assert goaway(opened.data_to_send()) == (frames.NO_ERROR, "the server is stopping")
    assert opened.receive(call(3, b""), 0.0) == []
    assert kinds(opened.data_to_send(), 3) == [frames.RST_STREAM]
    assert not opened.closed
    opened.finish(event.stream, OK, b"answer")
    assert opened.closed
    assert answer(opened.data_to_send(), 1)[1] == message(b"answer")


@pytest.mark.parametrize("reset", [False, True])
def test_a_stopping_connection_without_calls_closes(reset: bool) -> None:
    opened = connection()
    if reset:
        opened_stream(opened)
    opened.stop()
    opened.stop()
    assert opened.closed is not reset
    opened.receive(frames.reset(1, frames.CANCEL), 0.0)
    assert opened.closed
    assert kinds(opened.data_to_send(), 0) == [frames.GOAWAY]


def test_a_refused_connection_gets_settings_and_the_reason() -> None:
    opened = unopened()
    opened.refuse("too many connections")
    output = opened.data_to_send()
    assert sent(output)[0][0] == frames.SETTINGS
    assert goaway(output) == (frames.ENHANCE_YOUR_CALM, "too many connections")
    assert opened.closed


def test_a_lost_connection_closes_its_streams_in_silence() -> None:
    opened = connection()
    stream = opened_stream(opened)
    opened.lose()
    opened.finish(stream, OK)
    assert (opened.closed, opened.data_to_send()) == (True, b"")


# Frames beside calls.


def test_a_ping_is_answered_and_its_answer_is_not() -> None:
    opened = connection()
    opened.receive(frames.frame(frames.PING, 0, 0, b"12345678"), 0.0)
    opened.receive(frames.frame(frames.PING, frames.ACK, 0, b"12345678"), 0.0)
    assert sent(opened.data_to_send()) == [(frames.PING, frames.ACK, 0, b"12345678")]


def test_settings_are_acknowledged_and_their_acknowledgement_is_not() -> None:
    opened = connection()
    opened.receive(frames.settings({0x4242: 1}), 0.0)
    opened.receive(frames.frame(frames.SETTINGS, frames.ACK, 0), 0.0)
    assert sent(opened.data_to_send()) == [(frames.SETTINGS, frames.ACK, 0, b"")]
