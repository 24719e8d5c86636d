from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.http2.header_blocks import BlockDecoder, BlockEncoder, response_field

FIELDS = [(b":method", b"GET"), (b":path", b"/a"), (b"x-y", b"z"), (b"x-y", b"\xe4")]
MAX = 65_536


def decoded(block: bytes) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in hpack.Decoder().decode(block, raw=True)]


def test_a_block_that_changes_nothing_is_decoded_once() -> None:
    client, tested = hpack.Encoder(), BlockDecoder(MAX)
    first = tested.decode(client.encode(FIELDS))
    assert first == FIELDS
    block = client.encode(FIELDS)
    again = tested.decode(block)
    assert again == FIELDS
    assert tested.decode(block) is again


def test_a_block_is_decoded_again_when_the_table_has_changed() -> None:
    client, tested = hpack.Encoder(), BlockDecoder(MAX)
    tested.decode(client.encode([(b"a", b"1")]))
    last = b"\xbe"  # the newest entry of the table
    assert tested.decode(last) == [(b"a", b"1")]
    tested.decode(client.encode([(b"b", b"2")]))
    assert tested.decode(last) == [(b"b", b"2")]


def test_a_block_that_resizes_the_table_is_always_decoded() -> None:
    tested = BlockDecoder(MAX)
    for _ in range(2):
        tested.decode(b"\x20\x82")
        assert tested.header_table_size == 0
        tested.decode(b"\x3f\xe1\x1f\x82")
        assert tested.header_table_size == 4096


def test_a_block_is_decoded_again_when_the_table_was_emptied() -> None:
    tested = BlockDecoder(MAX)
    tested.decode(hpack.Encoder().encode([(b"a", b"1")]))
    last = b"\xbe"
    tested.decode(last)
    tested.decode(b"\x20\x82")  # the size 0
    with pytest.raises(hpack.HPACKError):
        tested.decode(last)


@given(st.lists(st.lists(st.sampled_from(FIELDS), max_size=4), max_size=30))
def test_blocks_stand_for_the_headers_that_were_sent(
    requests: list[list[tuple[bytes, bytes]]],
) -> None:
    client, tested = hpack.Encoder(), BlockDecoder(MAX)
    client.header_table_size = 80  # a few entries, so that some are evicted
    tested.header_table_size = 80
    for fields in requests:
        assert tested.decode(client.encode(fields)) == fields


def test_few_blocks_are_kept() -> None:
    tested = BlockDecoder(MAX)
    for number in range(100):
        tested.decode(b"\0\1a\1" + bytes([number]))
    assert 0 < len(tested._known) <= 4
    long, many = b"\0\1a\x7f\x90\x03" + bytes(527), b"\x82" * 33
    tested.decode(long)
    tested.decode(many)
    assert not {long, many} & tested._known.keys()


@pytest.mark.parametrize("block", [b"\xff", b"\x80", b"\xbe", b"\0\5a"])
def test_a_malformed_block_is_an_error(block: bytes) -> None:
    with pytest.raises(hpack.HPACKError):
        BlockDecoder(MAX).decode(block)


def test_a_list_that_is_too_large_is_an_error() -> None:
    tested = BlockDecoder(100)
    with pytest.raises(hpack.OversizedHeaderListError):
        tested.decode(hpack.Encoder().encode([(b"a", bytes(70))]))


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=200), st.binary(max_size=40_000))))
def test_what_is_encoded_can_be_decoded(fields: list[tuple[bytes, bytes]]) -> None:
    tested = BlockEncoder()
    client = hpack.Decoder(1 << 24)
    for _ in range(2):
        block = tested.encode(fields)
        assert [(name, value) for name, value in client.decode(block, raw=True)] == fields


def test_fields_of_the_static_table_are_short() -> None:
    tested = BlockEncoder()
    assert tested.encode([]) == b"\x20"
    assert tested.encode([(b":status", b"200")]) == b"\x88"
    assert tested.encode([(b":status", b"418")]) == b"\x08\x03418"
    assert tested.encode([(b"content-type", b"a")]) == b"\x0f\x10\x01a"


def test_a_new_table_size_is_confirmed_in_the_next_block() -> None:
    """RFC 7541, 4.2; nghttp2 takes a block that does not for an error."""
    tested = BlockEncoder()
    tested.encode([])
    tested.header_table_size = 0
    assert tested.header_table_size == 0
    assert tested.encode([(b":status", b"200")]) == b"\x20\x88"
    assert tested.encode([(b":status", b"200")]) == b"\x88"
    assert decoded(b"\x20\x88") == [(b":status", b"200")]


def test_fields_that_are_encoded_already_are_passed_on() -> None:
    fields = response_field("X-Y", "\xe4") + response_field("content-type", "a")
    block = BlockEncoder().encode([(b":status", b"200"), (b"", fields)])
    assert decoded(block) == [(b":status", b"200"), (b"x-y", b"\xe4"), (b"content-type", b"a")]


@pytest.mark.parametrize("name", ["connection", "Keep-Alive", "transfer-encoding", "upgrade"])
def test_what_only_http1_has_is_left_out(name: str) -> None:
    assert response_field(name, "close") == b""


@pytest.mark.parametrize(
    ("name", "value"), [("x", "a\nb"), ("x", "a\r"), ("x\n", "a"), ("x", "\u20ac")]
)
def test_a_header_that_would_end_its_line_or_is_not_latin_1_is_an_error(
    name: str, value: str
) -> None:
    with pytest.raises(ValueError, match=r"line break|latin-1"):
        response_field(name, value)
