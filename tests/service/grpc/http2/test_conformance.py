"""What RFC 9113 says of frames and requests that are wrong, section by section, on bytes.

An outcome is ("goaway", code) for a connection error, ("reset", code) for an error of stream 1, or
a word for what else has to come of the frames. After each frame sequence that the connection has
to survive, another call on it is answered.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest

from service.grpc.http2 import frames as wire
from service.grpc.http2.events import CallCancelled, MessageReceived
from service.grpc.http2.headers import OK
from tests.service.grpc.http2.client import (
    START,
    STREAMING,
    UNARY,
    answer,
    block,
    call,
    connection,
    data,
    goaway,
    headers,
    literal_block,
    message,
    sent,
    unopened,
)

LATER = 101  # the stream of the call that has to be answered afterwards
TRAILERS = literal_block([("x-checksum", "1")])
REQUEST = {
    ":method": "POST",
    ":scheme": "http",
    ":path": UNARY,
    "content-type": "application/grpc",
    "te": "trailers",
}


def outcome(content: bytes) -> Any:
    """What comes of frames on stream 1; messages that are complete are answered."""
    opened = connection()
    cancelled = False
    for event in opened.receive(content, 0.0):
        cancelled |= isinstance(event, CallCancelled)
        if isinstance(event, MessageReceived) and not event.stream.headers.is_unary:
            opened.send(event.stream, b"answer")
    output = opened.data_to_send()
    if reason := goaway(output):
        assert opened.closed
        return "goaway", reason[0]
    assert not opened.closed
    for event in opened.receive(call(LATER, b"later"), 0.0):
        assert event.stream.id == LATER
        opened.finish(event.stream, OK, b"answered")
    later = answer(opened.data_to_send(), LATER)
    assert (later[0]["grpc-status"], later[1]) == ("0", message(b"answered"))
    resets = [f for f in sent(output) if f[0] == wire.RST_STREAM]
    fields, _ = answer(output, 1)
    if resets:
        ((_, _, stream_id, payload),) = resets
        assert stream_id == 1
        if fields:
            assert payload == bytes(4)  # NO_ERROR after a whole answer
            return "answered early", fields.get("grpc-status", fields[":status"])
        return "reset", struct.unpack(">I", payload)[0]
    if fields:
        return "answered", fields.get("grpc-status", fields[":status"])
    return "cancelled" if cancelled else "no reaction"


def frame(kind: int, stream_id: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return wire.frame(kind, flags, stream_id, payload)


def request(*fields: tuple[str, str], without: str = "", **changed: str) -> bytes:
    """HEADERS of a request with further fields at its end, and some changed."""
    first = {name: value for name, value in REQUEST.items() if name != without}
    first |= {name.replace("_", "-"): value for name, value in changed.items()}
    return headers(1, literal_block([*first.items(), *fields]))


OPEN = headers(1)
HALF_CLOSED = call(1, b"")  # waits for its answer
EARLY = headers(1, block("/nothing"))  # answered with UNIMPLEMENTED before its end
GAVE_UP = OPEN + wire.reset(1, wire.CANCEL)
NEXT = headers(3, block(STREAMING))

PROTOCOL, FLOW, SIZE = wire.PROTOCOL_ERROR, wire.FLOW_CONTROL_ERROR, wire.FRAME_SIZE_ERROR
CLOSED = wire.STREAM_CLOSED


@pytest.mark.parametrize(
    ("section", "content", "expected"),
    [
        # 4.2 and 4.3: sizes and header blocks.
        ("4.2", frame(wire.HEADERS, 1, bytes(4), wire.PRIORITISED | 4), ("goaway", SIZE)),
        ("4.3", frame(wire.HEADERS, 1, b"\xc5", 4), ("goaway", wire.COMPRESSION_ERROR)),
        ("4.3", frame(wire.HEADERS, 1, block()) + NEXT, ("goaway", PROTOCOL)),
        # 5.1: idle streams.
        ("5.1 idle", data(1, b""), ("goaway", PROTOCOL)),
        ("5.1 idle", wire.reset(1, 0), ("goaway", PROTOCOL)),
        ("5.1 idle", wire.window_update(1, 1), ("goaway", PROTOCOL)),
        ("5.1 idle", NEXT + wire.window_update(2, 1), ("goaway", PROTOCOL)),
        ("5.1 idle", frame(wire.PRIORITY, 1, bytes(5)), "no reaction"),
        # 5.1: half-closed (remote).
        ("5.1 half-closed", HALF_CLOSED + data(1, b""), ("reset", CLOSED)),
        ("5.1 half-closed", HALF_CLOSED + headers(1, TRAILERS, 1), ("reset", CLOSED)),
        ("5.1 half-closed", HALF_CLOSED + wire.window_update(1, 1), "no reaction"),
        ("5.1 half-closed", HALF_CLOSED + frame(wire.PRIORITY, 1, bytes(5)), "no reaction"),
        ("5.1 half-closed", HALF_CLOSED + wire.reset(1, wire.CANCEL), "cancelled"),
        # 5.1: closed by an early answer; the peer's frames were on their way.
        ("5.1 closed", EARLY + data(1, b"x" * 9), ("answered early", "12")),
        ("5.1 closed", EARLY + data(1, b"", end=True), ("answered early", "12")),
        ("5.1 closed", EARLY + headers(1, TRAILERS, 1), ("answered early", "12")),
        ("5.1 closed", EARLY + wire.window_update(1, 1), ("answered early", "12")),
        ("5.1 closed", EARLY + wire.reset(1, wire.CANCEL), ("answered early", "12")),
        # 5.1: closed by the peer.
        ("5.1 closed", GAVE_UP + data(1, b""), ("reset", CLOSED)),
        ("5.1 closed", GAVE_UP + headers(1, TRAILERS, 1), ("goaway", PROTOCOL)),
        ("5.1 closed", GAVE_UP + wire.window_update(1, 1), "cancelled"),
        ("5.1 closed", GAVE_UP + frame(wire.PRIORITY, 1, bytes(5)), "cancelled"),
        # 5.1.1: numbers of streams.
        ("5.1.1", headers(2), ("goaway", PROTOCOL)),
        ("5.1.1", headers(0), ("goaway", PROTOCOL)),
        ("5.1.1", NEXT + headers(1), ("goaway", PROTOCOL)),
        # 5.5: extensions.
        ("5.5", frame(0xBE, 1, b"?", 0xFF), "no reaction"),
        # 6.1: DATA.
        ("6.1", data(0, b""), ("goaway", PROTOCOL)),
        ("6.1", OPEN + frame(wire.DATA, 1, b"\x05abcd", wire.PADDED), ("goaway", PROTOCOL)),
        ("6.1", OPEN + frame(wire.DATA, 1, b"", wire.PADDED), ("goaway", PROTOCOL)),
        # 6.2: HEADERS.
        ("6.2", frame(wire.HEADERS, 1, b"\x09ab", wire.PADDED | 4), ("goaway", PROTOCOL)),
        # 6.3: PRIORITY.
        ("6.3", frame(wire.PRIORITY, 0, bytes(5)), ("goaway", PROTOCOL)),
        ("6.3", OPEN + frame(wire.PRIORITY, 1, bytes(4)), ("reset", SIZE)),
        ("6.3", frame(wire.PRIORITY, 1, bytes(4)), ("goaway", SIZE)),
        # 6.4: RST_STREAM.
        ("6.4", OPEN + frame(wire.RST_STREAM, 1, bytes(3)), ("goaway", SIZE)),
        ("6.4", wire.reset(0, 0), ("goaway", PROTOCOL)),
        # 6.5: SETTINGS.
        ("6.5", frame(wire.SETTINGS, 0, bytes(6), wire.ACK), ("goaway", SIZE)),
        ("6.5", frame(wire.SETTINGS, 0, bytes(5)), ("goaway", SIZE)),
        ("6.5", OPEN + frame(wire.SETTINGS, 1), ("goaway", PROTOCOL)),
        ("6.5.2", wire.settings({wire.ENABLE_PUSH: 2}), ("goaway", PROTOCOL)),
        ("6.5.2", wire.settings({wire.ENABLE_PUSH: 1}), "no reaction"),
        ("6.5.2", wire.settings({wire.INITIAL_WINDOW_SIZE: 2**31}), ("goaway", FLOW)),
        ("6.5.2", wire.settings({wire.MAX_FRAME_SIZE: 2**14 - 1}), ("goaway", PROTOCOL)),
        ("6.5.2", wire.settings({wire.MAX_FRAME_SIZE: 2**24}), ("goaway", PROTOCOL)),
        ("6.5.2", wire.settings({0xFFFF: 2**32 - 1}), "no reaction"),
        # 6.6: PUSH_PROMISE.
        ("6.6", OPEN + frame(wire.PUSH_PROMISE, 1, bytes(4), 4), ("goaway", PROTOCOL)),
        # 6.7: PING.
        ("6.7", OPEN + frame(wire.PING, 1, bytes(8)), ("goaway", PROTOCOL)),
        ("6.7", frame(wire.PING, 0, bytes(7)), ("goaway", SIZE)),
        # 6.8: GOAWAY.
        ("6.8", OPEN + frame(wire.GOAWAY, 1, bytes(8)), ("goaway", PROTOCOL)),
        ("6.8", frame(wire.GOAWAY, 0, bytes(7)), ("goaway", SIZE)),
        ("6.8", OPEN + wire.goaway(0, 0, "leaving"), "no reaction"),
        # 6.9: WINDOW_UPDATE.
        ("6.9", wire.window_update(0, 0), ("goaway", PROTOCOL)),
        ("6.9", OPEN + wire.window_update(1, 0), ("reset", PROTOCOL)),
        ("6.9", OPEN + frame(wire.WINDOW_UPDATE, 1, bytes(3)), ("goaway", SIZE)),
        ("6.9.1", wire.window_update(0, 2**31 - 1), ("goaway", FLOW)),
        ("6.9.1", OPEN + wire.window_update(1, 2**31 - 1), ("reset", FLOW)),
        (
            "6.9.2",
            OPEN
            + wire.window_update(1, 2**31 - 1 - wire.DEFAULT_WINDOW)
            + wire.settings({wire.INITIAL_WINDOW_SIZE: wire.DEFAULT_WINDOW + 1}),
            ("goaway", FLOW),
        ),
        # 6.10: CONTINUATION.
        ("6.10", frame(wire.CONTINUATION, 1, b"", 4), ("goaway", PROTOCOL)),
        ("6.10", OPEN + frame(wire.CONTINUATION, 1, b"", 4), ("goaway", PROTOCOL)),
        # 8.1: requests.
        ("8.1", OPEN + headers(1, TRAILERS), ("reset", PROTOCOL)),
        ("8.1", OPEN + headers(1, block(), 1), ("reset", PROTOCOL)),
        ("8.1.1", request(content_length="4") + data(1, message(b"")), ("reset", PROTOCOL)),
        ("8.1.1", request(content_length="6") + data(1, message(b""), True), ("reset", PROTOCOL)),
        ("8.1.1", request(content_length="x"), ("reset", PROTOCOL)),
        ("8.1.1", request(content_length="5") + data(1, message(b""), True), "no reaction"),
        # 8.2: names and values.
        ("8.2.1", request(("X-Upper", "1")), ("reset", PROTOCOL)),
        ("8.2.1", request(("x name", "1")), ("reset", PROTOCOL)),
        ("8.2.1", request(("x\xe9", "1")), ("reset", PROTOCOL)),
        ("8.2.1", request(("", "1")), ("reset", PROTOCOL)),
        ("8.2.1", request(("x", "a\nb")), ("reset", PROTOCOL)),
        ("8.2.1", request(("x", "a\0b")), ("reset", PROTOCOL)),
        ("8.2.2", request(("connection", "close")), ("reset", PROTOCOL)),
        ("8.2.2", request(("keep-alive", "1")), ("reset", PROTOCOL)),
        ("8.2.2", request(("proxy-connection", "1")), ("reset", PROTOCOL)),
        ("8.2.2", request(("transfer-encoding", "chunked")), ("reset", PROTOCOL)),
        ("8.2.2", request(("upgrade", "h2c")), ("reset", PROTOCOL)),
        ("8.2.2", request(te="gzip"), ("reset", PROTOCOL)),
        ("8.2.2", request(), "no reaction"),
        # 8.3: pseudo-headers.
        ("8.3", request((":authority", "late")), ("reset", PROTOCOL)),
        ("8.3", headers(1, block(UNARY, {":status": "200"})), ("reset", PROTOCOL)),
        ("8.3", OPEN + headers(1, literal_block([(":path", "/")]), 1), ("reset", PROTOCOL)),
        ("8.3.1", request(without=":method"), ("reset", PROTOCOL)),
        ("8.3.1", request(without=":scheme"), ("reset", PROTOCOL)),
        ("8.3.1", request(without=":path"), ("reset", PROTOCOL)),
        ("8.3.1", headers(1, block("")), ("reset", PROTOCOL)),
        (
            "8.3.1",
            headers(1, literal_block([(":method", "POST"), *REQUEST.items()])),
            ("reset", PROTOCOL),
        ),
        # gRPC over HTTP/2: what is not gRPC, or is refused by its headers.
        ("grpc", headers(1, block(UNARY, {":method": "GET"}), 1), ("answered", "405")),
        ("grpc", headers(1, block(UNARY, {":method": "GET"})), ("answered early", "405")),
        (
            "grpc",
            headers(1, block(UNARY, {"content-type": "application/grpc-web"})) + data(1, b"x"),
            ("answered early", "415"),
        ),
        ("grpc", headers(1, block(UNARY, {"grpc-timeout": "soon"})), ("answered early", "13")),
        ("grpc", headers(1, block(UNARY, {"x": "y" * 17_000}), 1), ("answered", "8")),
        ("grpc", headers(1, block(UNARY, {"x": "y" * 17_000})), ("answered early", "8")),
    ],
)
def test_frames_have_the_outcome_of_their_section(
    section: str, content: bytes, expected: Any
) -> None:
    assert outcome(content) == expected, section


def test_settings_are_the_first_frame_of_a_connection() -> None:
    """3.4."""
    acknowledgement = frame(wire.SETTINGS, 0, flags=wire.ACK)
    for first in (OPEN, frame(wire.PING, 0, bytes(8)), frame(0xBE, 0), acknowledgement):
        opened = unopened()
        opened.receive(wire.PREFACE + first + START[len(wire.PREFACE) :], 0.0)
        ended = goaway(opened.data_to_send())
        assert ended == (PROTOCOL, "the preface is not followed by SETTINGS")
