"""One call: its messages, its windows and its states. Source: RFC 9113, 5.1 and 5.2."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.grpc.http2 import frames
from service.grpc.http2.frames import ProtocolError, StreamError
from service.grpc.http2.headers import OK, HeaderDecoder, Status
from service.grpc.http2.stream import STREAM_WINDOW, CallFailed, PeerSettings, State, Stream
from tests.service.grpc.http2.client import (
    RPCS,
    STREAMING,
    UNARY,
    answer,
    block,
    budget,
    chunks,
    message,
)
from tests.service.grpc.http2.client import sent as frames_in

MAX_MESSAGE = 1000
LARGE = 1 << 30


def stream(path: str = UNARY, send_window: int = LARGE) -> Stream:
    return Stream(
        1,
        headers=HeaderDecoder(RPCS).decode(block(path)),
        request_id="id",
        opened_at=5.0,
        peer=PeerSettings(initial_window=send_window),
    )


def receive(opened: Stream, content: bytes, end: bool = False) -> None:
    opened.receive(content, len(content), end)


def read_all(opened: Stream) -> None:
    for _ in opened.take_messages(LARGE):
        opened.message_read()


def failure(opened: Stream) -> Status:
    take = opened.take_message if opened.headers.is_unary else opened.take_messages
    with pytest.raises(CallFailed) as caught:
        take(MAX_MESSAGE)
    return caught.value.status


def everything(opened: Stream) -> bytes:
    parts, _ = opened.next_frames(LARGE)
    return b"".join(parts)


# Messages from the peer.


@given(st.binary(max_size=MAX_MESSAGE), st.integers(0, 255), st.lists(st.integers(0)))
def test_a_unary_message_is_taken_whole_at_end_stream(
    content: bytes, flag: int, cuts: list[int]
) -> None:
    call = stream()
    for chunk in chunks(message(content, flag), cuts):
        receive(call, chunk)
        assert call.take_message(MAX_MESSAGE) is None
    receive(call, b"", end=True)
    assert call.take_message(MAX_MESSAGE) == (flag, content)


@given(
    st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=60)), max_size=8),
    st.lists(st.integers(0)),
)
def test_messages_of_a_stream_are_the_same_however_they_are_split(
    messages: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    call, taken = stream(STREAMING), []
    for chunk in chunks(b"".join(message(content, flag) for flag, content in messages), cuts):
        receive(call, chunk)
        taken += call.take_messages(MAX_MESSAGE)
    receive(call, b"", end=True)
    assert call.take_messages(MAX_MESSAGE) == []
    assert taken == messages


@pytest.mark.parametrize("path", [UNARY, STREAMING])
def test_a_message_too_large_fails_the_call_at_its_prefix(path: str) -> None:
    call = stream(path)
    receive(call, message(bytes(MAX_MESSAGE + 1))[:5])
    assert failure(call) == ("RESOURCE_EXHAUSTED", "The message is larger than 1000 bytes.")


@pytest.mark.parametrize("content", [b"", b"\0\0", message(b"abc")[:-1], message(b"abc") * 2])
def test_a_unary_call_that_ends_without_one_whole_message_fails(content: bytes) -> None:
    call = stream()
    receive(call, content, end=True)
    code, text = failure(call)
    assert (code, "one whole message" in text) == ("INTERNAL", True)


def test_bytes_after_a_unary_message_fail_the_call_before_end_stream() -> None:
    call = stream()
    receive(call, message(b"abc") + b"x")
    assert failure(call).code == "INTERNAL"


def test_a_stream_that_ends_inside_a_message_fails() -> None:
    call = stream(STREAMING)
    receive(call, message(b"abc") + message(b"def")[:-1], end=True)
    assert failure(call) == ("INTERNAL", "The stream ended inside a message.")


# The peer's window.


def test_more_data_than_the_window_is_a_connection_error() -> None:
    call = stream()
    receive(call, bytes(STREAM_WINDOW))
    with pytest.raises(ProtocolError) as caught:
        receive(call, b"x")
    assert caught.value.code == frames.FLOW_CONTROL_ERROR


def test_padding_counts_against_the_window() -> None:
    call = stream()
    call.receive(b"", STREAM_WINDOW, False)
    with pytest.raises(ProtocolError):
        call.receive(b"", 1, False)


def test_half_of_the_window_is_granted_again_once_it_is_used() -> None:
    call = stream(STREAMING)
    receive(call, message(bytes(STREAM_WINDOW // 2 - 5)))
    read_all(call)
    assert call.grant() == 0
    receive(call, message(b"x"))
    read_all(call)
    assert call.grant() == STREAM_WINDOW // 2 + 6
    assert call.grant() == 0
    receive(call, bytes(STREAM_WINDOW))


@pytest.mark.parametrize("path", [UNARY, STREAMING])
def test_a_message_that_fits_into_the_window_needs_no_update(path: str) -> None:
    call = stream(path)
    whole = message(bytes(STREAM_WINDOW - 5))
    for start in range(0, STREAM_WINDOW, 5000):
        receive(call, whole[start : start + 5000])
        assert not call.must_claim
        assert call.grant() == 0


def test_padding_that_uses_up_the_window_is_made_up_for() -> None:
    call = stream()
    call.receive(message(bytes(1000))[:100], STREAM_WINDOW - 900, False)
    assert call.grant() == STREAM_WINDOW - 900


@pytest.mark.parametrize("path", [UNARY, STREAMING])
def test_a_larger_message_waits_for_its_claim_and_then_gets_what_it_lacks(path: str) -> None:
    call = stream(path)
    whole = message(bytes(3 * STREAM_WINDOW))
    receive(call, whole[:1000])
    assert call.must_claim
    assert call.grant() == 0
    call.claim = budget().claim(call.next_size, "grpc", lambda: None, print)
    assert not call.must_claim
    assert call.grant() == len(whole) - STREAM_WINDOW
    assert call.grant() == 0
    receive(call, whole[1000:])
    with pytest.raises(ProtocolError):
        receive(call, b"x")


def test_a_message_of_a_stream_holds_its_bytes_or_its_claim() -> None:
    held = budget()
    call = stream(STREAMING)
    large = message(bytes(STREAM_WINDOW))
    receive(call, message(b"one") + large[:1000])
    call.take_messages(LARGE)
    call.message_read()
    call.claim = held.claim(call.next_size, "grpc", lambda: None, print)
    assert call.grant() > 0
    receive(call, large[1000:])
    assert len(call.take_messages(LARGE)) == 1
    small, claim = call.holds
    assert small == len(message(b"one"))
    assert not isinstance(claim, int)
    assert (claim.size, call.claim) == (len(large), None)


def test_unread_messages_keep_the_window_shut() -> None:
    call = stream(STREAMING)
    receive(call, message(bytes(STREAM_WINDOW // 2)))
    assert len(call.take_messages(LARGE)) == 1
    assert call.grant() == 0
    call.message_read()
    assert call.grant() > STREAM_WINDOW // 2


def test_data_after_the_result_is_dropped_and_its_window_kept() -> None:
    call = stream(STREAMING)
    receive(call, message(b"first") + b"\0\0")
    call.finish(Status("INTERNAL", "failed"), None)
    receive(call, bytes(STREAM_WINDOW // 2))
    assert call.grant() == 0
    assert call.take_messages(MAX_MESSAGE) == []


# Answers to the peer.


@given(
    st.binary(max_size=500),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), max_size=5),
    st.integers(1, 100),
)
def test_an_answer_is_cut_to_the_windows_and_arrives_whole(
    content: bytes, grants: list[tuple[int, int]], max_frame: int
) -> None:
    peer = PeerSettings(initial_window=0)
    peer.max_frame = max_frame
    headers = HeaderDecoder(RPCS).decode(block())
    call = Stream(1, headers=headers, request_id="id", opened_at=5.0, peer=peer)
    call.finish(OK, content)
    output, connection_window, stream_window = b"", 0, 0
    for connection_grant, stream_grant in [*grants, (LARGE, LARGE)]:
        connection_window += connection_grant
        stream_window += stream_grant
        call.enlarge_window(stream_grant)
        parts, used = call.next_frames(connection_window)
        received = frames_in(b"".join(parts))
        sizes = [len(payload) for kind, _, _, payload in received if kind == frames.DATA]
        assert sum(sizes) == used <= min(connection_window, stream_window)
        assert all(size <= max_frame for size in sizes)
        connection_window -= used
        stream_window -= used
        output += b"".join(parts)
        if call.state != State.OPEN:
            break
    fields, received_content = answer(output, 1)
    assert received_content == message(content)
    assert fields["grpc-status"] == "0"
    last = frames_in(output)[-1]
    assert last[:2] == (frames.HEADERS, frames.END_HEADERS | frames.END_STREAM)


def test_messages_of_a_stream_follow_one_set_of_headers() -> None:
    call = stream(STREAMING)
    call.send(b"one")
    output = everything(call)
    call.send(b"two")
    output += everything(call)
    call.finish(OK, None)
    output += everything(call)
    kinds = [kind for kind, _, _, _ in frames_in(output)]
    assert kinds == [frames.HEADERS, frames.DATA, frames.DATA, frames.HEADERS]
    assert answer(output, 1)[1] == message(b"one") + message(b"two")


def test_a_failure_without_messages_is_trailers_only() -> None:
    """gRPC over HTTP2, "Trailers-Only"."""
    call = stream()
    call.finish(Status("NOT_FOUND", "no"), None)
    output = everything(call)
    assert [kind for kind, _, _, _ in frames_in(output)] == [frames.HEADERS]
    fields, _ = answer(output, 1)
    assert (fields[":status"], fields["grpc-status"]) == ("200", "5")


def test_trailers_wait_for_the_messages_before_them() -> None:
    call = stream(STREAMING, send_window=4)
    call.send(b"message")
    everything(call)
    call.finish(OK, None)
    assert everything(call) == b""
    call.enlarge_window(LARGE)
    assert frames_in(everything(call))[-1][1] & frames.END_STREAM


def test_a_window_below_zero_sends_nothing() -> None:
    """6.9.2: SETTINGS may make a window negative."""
    peer = PeerSettings(initial_window=10)
    headers = HeaderDecoder(RPCS).decode(block())
    call = Stream(1, headers=headers, request_id="id", opened_at=5.0, peer=peer)
    peer.initial_window -= 20
    call.finish(OK, b"answer")
    parts, used = call.next_frames(LARGE)
    assert used == 0
    assert [kind for kind, _, _, _ in frames_in(b"".join(parts))] == [frames.HEADERS]


def test_a_window_past_the_largest_is_a_stream_error() -> None:
    """6.9.1."""
    call = stream(send_window=frames.LARGEST_WINDOW)
    with pytest.raises(StreamError) as caught:
        call.enlarge_window(1)
    assert caught.value.code == frames.FLOW_CONTROL_ERROR


# States and times.


def test_a_call_that_ends_after_its_request_closes_from_half_closed_remote() -> None:
    call = stream()
    assert call.state == State.OPEN
    receive(call, message(b""), end=True)
    assert call.state == State.HALF_CLOSED_REMOTE
    call.finish(OK, b"")
    everything(call)
    assert call.state == State.CLOSED


def test_a_call_that_ends_before_its_request_is_half_closed_local() -> None:
    call = stream()
    call.finish(Status("INTERNAL", "failed"), None)
    everything(call)
    assert call.state == State.HALF_CLOSED_LOCAL


def test_the_deadline_is_the_timeout_after_the_opening() -> None:
    headers = HeaderDecoder(RPCS).decode(block(UNARY, {"grpc-timeout": "2S"}))
    call = Stream(1, headers=headers, request_id="id", opened_at=5.0, peer=PeerSettings())
    assert call.deadline == 7.0
    assert stream().deadline is None
