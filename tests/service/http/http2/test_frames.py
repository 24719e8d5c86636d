from __future__ import annotations

import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    SettingsFrame,
)

from service.http.http2.frames import MAX_HEADER_BLOCK, Breach, FrameReader, goaway

SETTINGS = SettingsFrame(0).serialize()
PING = PingFrame(0, opaque_data=b"12345678").serialize()
GOAWAY = GoAwayFrame(0).serialize()
ALL = 1 << 20


def reader(content: bytes = b"") -> FrameReader:
    """One that has had its SETTINGS."""
    made = FrameReader()
    made.add(SETTINGS)
    assert made.take(ALL) == SETTINGS
    made.add(content)
    return made


def breach(content: bytes) -> ErrorCodes:
    with pytest.raises(Breach) as caught:
        reader(content).take(ALL)
    return caught.value.code


@pytest.mark.parametrize("size", [1, 5, 9, 10, 1000])
def test_whole_frames_come_out_as_they_were(size: int) -> None:
    content = SETTINGS + PING + DataFrame(1, bytes(300)).serialize() + PING
    tested, taken = FrameReader(), b""
    for position in range(0, len(content), size):
        tested.add(content[position : position + size])
        taken += tested.take(ALL)
    assert taken == content
    assert tested.unfinished is None


def test_settings_that_nobody_knows_are_left_out() -> None:
    known = SettingsFrame(0, {4: 1000, 1: 0}).serialize()
    assert reader(PING + known + PING).take(ALL) == PING + known + PING
    mixed = SettingsFrame(0, {0xAA: 1, 4: 1000, 7: 2, 1: 0, 99: 5}).serialize()
    assert reader(PING + mixed + PING).take(ALL) == PING + known + PING
    unknown = SettingsFrame(0, dict.fromkeys(range(10, 250), 1)).serialize()
    assert reader(unknown).take(ALL) == SETTINGS


def test_of_a_setting_its_last_value_counts() -> None:
    twice = b"\0\0\x0c\4" + bytes(5) + b"\0\4\0\0\0\1" + b"\0\4\0\0\0\2"
    assert reader(twice).take(ALL) == SettingsFrame(0, {4: 2}).serialize()


def test_settings_of_a_wrong_size_are_left_to_h2() -> None:
    wrong = b"\0\0\5\4" + bytes(5) + b"abcde"
    assert reader(wrong + PING).take(ALL) == wrong + PING


def test_no_more_frames_than_their_costs_allow() -> None:
    tested = reader(PING * 5)
    assert tested.take(3 * 4) == PING * 3  # the cost of a frame is 4
    assert (tested.cost, tested.has_more) == (3 * 4, True)
    assert tested.take(3 * 4) == PING * 2
    assert (tested.cost, tested.has_more) == (2 * 4, False)


def test_a_large_header_block_is_taken_alone() -> None:
    block = HeadersFrame(1, bytes(2000), flags=["END_HEADERS"]).serialize()
    tested = reader(block * 2 + PING)
    assert tested.take(100) == block
    assert tested.has_more
    assert tested.take(100) == block
    assert tested.take(100) == PING


def test_what_is_unfinished_has_a_number_of_its_own() -> None:
    tested = reader(PING[:5])
    assert tested.take(ALL) == b""
    first = tested.unfinished
    assert first is not None
    tested.add(PING[5:10])
    tested.take(ALL)
    assert tested.unfinished == first
    tested.add(PING[10:] + PING[:1])
    tested.take(ALL)
    assert tested.unfinished not in (None, first)


def test_a_header_block_is_unfinished_until_its_last_frame() -> None:
    tested = reader(HeadersFrame(1, b"a").serialize())
    tested.take(ALL)
    first = tested.unfinished
    assert first is not None
    tested.add(ContinuationFrame(1, b"b").serialize())
    tested.take(ALL)
    assert tested.unfinished == first
    tested.add(ContinuationFrame(1, b"c", flags=["END_HEADERS"]).serialize())
    tested.take(ALL)
    assert tested.unfinished is None


def test_goaway_is_taken_out_and_noted() -> None:
    tested = reader(PING + GOAWAY + PING + GOAWAY)
    assert not tested.is_client_leaving
    assert tested.take(ALL) == PING * 2
    assert tested.is_client_leaving


def test_goaway_within_a_header_block_is_for_h2_to_refuse() -> None:
    begin = HeadersFrame(1, b"a").serialize()
    assert reader(begin + GOAWAY).take(ALL) == begin + GOAWAY


@pytest.mark.parametrize("first", [PING, SettingsFrame(0, flags=["ACK"]).serialize()])
def test_settings_come_first(first: bytes) -> None:
    tested = FrameReader()
    tested.add(first)
    with pytest.raises(Breach) as caught:
        tested.take(ALL)
    assert caught.value.code == ErrorCodes.PROTOCOL_ERROR


def test_our_goaway_is_that_of_others() -> None:
    theirs = GoAwayFrame(0, last_stream_id=2**31 - 1, error_code=ErrorCodes.ENHANCE_YOUR_CALM)
    assert goaway(2**31 - 1, ErrorCodes.ENHANCE_YOUR_CALM) == theirs.serialize()


def test_the_size_of_a_frame_is_checked_before_it_has_come() -> None:
    assert breach(b"\0\x40\x01" + bytes(6)) == ErrorCodes.FRAME_SIZE_ERROR
    assert reader(b"\0\x40\0" + bytes(6)).take(ALL) == b""


def test_the_size_of_a_header_block_is_checked_before_it_has_come() -> None:
    quarter = MAX_HEADER_BLOCK // 4
    frames: list[Frame] = [HeadersFrame(1, bytes(quarter))]
    frames += [ContinuationFrame(1, bytes(quarter)) for _ in range(3)]
    content = b"".join([frame.serialize() for frame in frames])
    assert reader(content).take(ALL) == content
    one_more = ContinuationFrame(1, b"x").serialize()[:9]
    assert breach(content + one_more) == ErrorCodes.ENHANCE_YOUR_CALM
