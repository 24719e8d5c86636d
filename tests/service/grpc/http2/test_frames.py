"""Frames built and read. Source: RFC 9113; numbers in docstrings are its sections."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.grpc.http2 import frames
from service.grpc.http2.frames import FrameReader, ProtocolError
from tests.service.grpc.http2.client import chunks

MAX_FRAME = 100
MAX_BLOCK = 200
FRAMES = st.lists(
    st.tuples(
        # HEADERS and CONTINUATION depend on each other; tests of their own cover them.
        st.integers(0, 255).filter(lambda kind: kind not in {frames.HEADERS, frames.CONTINUATION}),
        st.integers(0, 255),
        st.integers(0, 2**31 - 1),
        st.binary(max_size=MAX_FRAME),
    ),
    max_size=8,
)


def reader(preface: bool = True) -> FrameReader:
    opened = FrameReader(MAX_FRAME, MAX_BLOCK)
    if preface:
        assert list(opened.frames(frames.PREFACE)) == []
    return opened


def read(content: bytes) -> list[frames.Frame]:
    return list(reader().frames(content))


def error_of(content: bytes) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        read(content)
    return caught.value


@given(FRAMES, st.lists(st.integers(0)))
def test_frames_are_the_same_however_their_bytes_are_split(
    sent: list[frames.Frame], cuts: list[int]
) -> None:
    content = frames.PREFACE + b"".join(frames.frame(*each) for each in sent)
    received, split = [], reader(preface=False)
    for chunk in chunks(content, cuts):
        received += split.frames(chunk)
    assert received == sent
    assert all(type(payload) is bytes for _, _, _, payload in received)


@given(FRAMES, st.integers(1, 4), st.integers(0, 40))
def test_frames_are_the_same_however_many_are_taken_at_a_time(
    sent: list[frames.Frame], at_most: int, cut: int
) -> None:
    content = b"".join(frames.frame(*each) for each in sent)
    end = max(len(content) - cut, 0)
    opened = reader()
    received = list(opened.frames(content[:end], at_most))
    while opened.has_frame:
        assert opened.unfinished_headers is None
        received += opened.frames(b"", at_most)
    received += opened.frames(content[end:])
    assert received == sent


@given(st.lists(st.binary(max_size=60)), st.booleans())
def test_arbitrary_bytes_raise_nothing_but_the_protocol_error(
    content: list[bytes], preface: bool
) -> None:
    opened = reader(preface)
    with contextlib.suppress(ProtocolError):
        for chunk in content:
            list(opened.frames(chunk))


@given(st.lists(st.tuples(st.sampled_from([1, 9, 9, 0]), st.integers(0, 255), st.binary())))
def test_arbitrary_header_frames_raise_nothing_but_the_protocol_error(
    sent: list[tuple[int, int, bytes]],
) -> None:
    with contextlib.suppress(ProtocolError):
        for kind, _, _, payload in read(b"".join(frames.frame(k, f, 1, p) for k, f, p in sent)):
            assert kind in {frames.HEADERS, frames.DATA}
            assert len(payload) <= MAX_BLOCK


def test_frames_before_an_error_are_read() -> None:
    good = (frames.PING, 0, 0, b"12345678")
    received = reader().frames(frames.frame(*good) + frames.frame(frames.CONTINUATION, 0, 1))
    assert next(received) == good
    with pytest.raises(ProtocolError):
        next(received)


def test_a_frame_too_large_is_refused_before_its_payload_arrives() -> None:
    error = error_of(frames.frame(frames.DATA, 0, 1, bytes(MAX_FRAME + 1))[:9])
    assert error.code == frames.FRAME_SIZE_ERROR
    assert len(read(frames.frame(frames.DATA, 0, 1, bytes(MAX_FRAME)))) == 1


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"PRI * HTTP/1"])
def test_another_protocol_is_recognised_by_its_first_bytes(start: bytes) -> None:
    with pytest.raises(ProtocolError, match="this port speaks gRPC over HTTP/2"):
        list(reader(preface=False).frames(start))


def test_the_preface_is_received_once_it_is_complete() -> None:
    opened = reader(preface=False)
    for byte in frames.PREFACE:
        assert not opened.preface_received
        assert list(opened.frames(bytes([byte]))) == []
    assert opened.preface_received


def test_the_reserved_bit_of_a_stream_id_is_ignored() -> None:
    """4.1."""
    (received,) = read(frames.FRAME_HEADER.pack(0, 0, frames.DATA, 0, 2**31 | 5))
    assert received == (frames.DATA, 0, 5, b"")


def test_a_header_block_is_joined_from_its_continuations() -> None:
    """6.10."""
    first = frames.frame(frames.HEADERS, frames.END_STREAM, 7, b"one ")
    second = frames.frame(frames.CONTINUATION, 0, 7, b"two ")
    last = frames.frame(frames.CONTINUATION, frames.END_HEADERS, 7, b"three")
    flags = frames.END_STREAM | frames.END_HEADERS
    assert read(first + second + last) == [(frames.HEADERS, flags, 7, b"one two three")]
    assert read(first + second) == []


def test_padding_and_priority_fields_of_headers_are_removed() -> None:
    """6.2."""
    flags = frames.PADDED | frames.PRIORITISED | frames.END_HEADERS
    payload = bytes([3]) + bytes(5) + b"block" + bytes(3)
    assert read(frames.frame(frames.HEADERS, flags, 1, payload))[0][3] == b"block"


@pytest.mark.parametrize(
    ("content", "code", "reason"),
    [
        (frames.frame(frames.CONTINUATION, 0, 1), frames.PROTOCOL_ERROR, "without headers"),
        (
            frames.frame(frames.HEADERS, 0, 1) + frames.frame(frames.PING, 0, 0, bytes(8)),
            frames.PROTOCOL_ERROR,
            "interrupted",
        ),
        (frames.frame(frames.HEADERS, 0, 1) * 2, frames.PROTOCOL_ERROR, "interrupted"),
        (
            frames.frame(frames.HEADERS, 0, 1) + frames.frame(frames.CONTINUATION, 0, 3),
            frames.PROTOCOL_ERROR,
            "another stream",
        ),
        (
            frames.frame(frames.HEADERS, 0, 1)
            + frames.frame(frames.CONTINUATION, 0, 1, bytes(MAX_FRAME)) * 3,
            frames.ENHANCE_YOUR_CALM,
            "headers larger than allowed",
        ),
        (
            frames.frame(frames.HEADERS, frames.PADDED, 1, bytes([9, 1])),
            frames.PROTOCOL_ERROR,
            "padding",
        ),
    ],
)
def test_a_broken_header_block_is_a_protocol_error(content: bytes, code: int, reason: str) -> None:
    error = error_of(content)
    assert error.code == code
    assert reason in str(error)


def test_empty_continuations_do_not_continue_for_ever() -> None:
    """CVE-2024-27316."""
    empty = frames.frame(frames.CONTINUATION, 0, 1)
    assert read(frames.frame(frames.HEADERS, 0, 1) + empty * (MAX_BLOCK // 9)) == []
    error = error_of(frames.frame(frames.HEADERS, 0, 1) + empty * (MAX_BLOCK // 9 + 1))
    assert error.code == frames.ENHANCE_YOUR_CALM


@given(st.binary(max_size=500), st.integers(1, 120), st.integers(0, 1))
def test_a_header_block_larger_than_a_frame_continues_in_further_frames(
    content: bytes, max_frame: int, flags: int
) -> None:
    """6.2 and 6.10."""
    output = frames.headers(flags, 7, content, max_frame)
    sizes = []
    position = 0
    while position < len(output):
        high, low, kind, _, stream_id = frames.FRAME_HEADER.unpack_from(output, position)
        assert kind == (frames.CONTINUATION if sizes else frames.HEADERS)
        assert stream_id == 7
        sizes.append(high << 8 | low)
        position += frames.FRAME_HEADER.size + sizes[-1]
    assert max(sizes) <= max_frame
    opened = FrameReader(1000, 10_000)
    joined = (frames.HEADERS, flags | frames.END_HEADERS, 7, content)
    assert list(opened.frames(frames.PREFACE + output)) == [joined]


@given(st.binary(), st.integers(0, 255))
def test_padding_is_removed(content: bytes, size: int) -> None:
    assert frames.without_padding(bytes([size]) + content + bytes(size)) == content


@pytest.mark.parametrize("payload", [b"", b"\1", b"\3ab"])
def test_padding_as_long_as_its_frame_is_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match="padding"):
        frames.without_padding(payload)


@given(st.dictionaries(st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1)))
def test_settings_are_read_as_they_were_built(values: dict[int, int]) -> None:
    payload = frames.settings(values)[frames.FRAME_HEADER.size :]
    assert dict(frames.read_settings(payload)) == values


@given(st.binary(max_size=20))
def test_payloads_of_a_wrong_size_are_protocol_errors(payload: bytes) -> None:
    for read_payload, size in ((frames.read_settings, 6), (frames.read_word, 4)):
        fits = len(payload) % size == 0 if size == 6 else len(payload) == size
        with contextlib.nullcontext() if fits else pytest.raises(ProtocolError) as caught:
            read_payload(payload)
        assert fits or caught.value.code == frames.FRAME_SIZE_ERROR


@given(st.binary(max_size=50), st.integers(0, 50), st.integers(0, 50))
def test_a_copied_slice_is_independent_bytes(content: bytes, start: int, end: int) -> None:
    buffer = bytearray(content)
    copied = frames.copy_slice(buffer, start, end)
    assert type(copied) is bytes
    assert copied == content[start:end] == frames.copy_slice(content, start, end)
    buffer.clear()  # raises BufferError if a view of it is left
