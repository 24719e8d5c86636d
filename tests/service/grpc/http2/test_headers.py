"""Header blocks of calls. Sources: RFC 7541; gRPC over HTTP2 (PROTOCOL-HTTP2.md)."""

from __future__ import annotations

import contextlib
from urllib.parse import unquote

import grpc
import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.grpc.http2 import frames, headers
from service.grpc.http2.frames import ProtocolError
from service.grpc.http2.headers import (
    MAX_HEADER_LIST,
    OK,
    RESPONSE_HEADERS,
    HeaderDecoder,
    RetryLater,
    Status,
    http_error,
    read_timeout,
    trailers,
)
from tests.service.grpc.http2.client import RPCS, STREAMING, UNARY, block

ID = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=300)


def decoded(content: bytes) -> dict[str, str]:
    return dict(hpack.Decoder().decode(content))


def header_list_size(content: bytes) -> int:
    """The size by which MAX_HEADER_LIST_SIZE limits a header block (RFC 9113, 6.5.2)."""
    return sum(len(name) + len(value) + 32 for name, value in hpack.Decoder().decode(content))


def test_the_headers_of_a_request_are_decoded() -> None:
    more = {
        "x-request-id": "mine",
        "grpc-timeout": "250m",
        "grpc-encoding": "gzip",
        "triton_grpc_error": "true",
    }
    headers = HeaderDecoder(RPCS).decode(block(STREAMING, more))
    assert headers[:8] == (RPCS[STREAMING], False, STREAMING, "mine", 0.25, "gzip", True, 200)
    assert (headers.refusal, headers.content_length, headers.is_malformed) == (None, None, False)


def test_absent_headers_have_defaults() -> None:
    headers = HeaderDecoder(RPCS).decode(block(UNARY))
    assert headers[:8] == (RPCS[UNARY], True, UNARY, None, None, "identity", False, 200)
    assert (headers.refusal, headers.content_length, headers.is_malformed) == (None, None, False)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({":method": "GET"}, 405),
        ({"content-type": "application/json"}, 415),
        ({"content-type": "application/grpc+proto"}, 200),
        ({"content-type": "Application/gRPC; charset=utf-8"}, 200),
        ({"content-type": "application/grpc+json"}, 415),
        ({"content-type": "application/grpc-web"}, 415),
        ({"content-type": "application/grpc-web+proto"}, 415),
        ({"content-type": "application/grpcfoo"}, 415),
        ({"content-type": ""}, 415),
    ],
)
def test_requests_that_are_not_grpc_have_an_http_status(
    fields: dict[str, str], status: int
) -> None:
    assert HeaderDecoder(RPCS).decode(block(UNARY, fields)).http_status == status


def test_an_unknown_path_has_no_method() -> None:
    headers = HeaderDecoder(RPCS).decode(block("/nothing"))
    assert (headers.rpc, headers.is_unary, headers.path) == (None, False, "/nothing")


def test_a_repeated_block_is_decoded_once() -> None:
    decoder = HeaderDecoder(RPCS)
    assert decoder.decode(block()) is decoder.decode(block())


def test_many_different_blocks_are_not_all_kept() -> None:
    decoder = HeaderDecoder(RPCS)
    for index in range(1000):
        decoder.decode(block(UNARY, {"x-request-id": str(index)}))
    assert len(decoder._cache) < 100


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=4), max_size=30), st.integers(0, 200))
def test_cached_blocks_follow_the_changes_of_hpacks_table(
    calls: list[list[str]], table_size: int
) -> None:
    """The same block means something else after the table has changed."""
    encoder, decoder = hpack.Encoder(), HeaderDecoder(RPCS)
    encoder.header_table_size = table_size
    for names in calls:
        request_id = "-".join(["id", *names])
        fields = [(":path", UNARY), ("x-request-id", request_id), *((n, n * 20) for n in names)]
        assert decoder.decode(bytes(encoder.encode(fields))).request_id == request_id


@given(st.lists(st.binary(max_size=40)))
def test_malformed_blocks_raise_nothing_but_the_protocol_error(blocks: list[bytes]) -> None:
    decoder = HeaderDecoder(RPCS)
    with contextlib.suppress(ProtocolError):
        for content in blocks:
            decoder.decode(content)


def test_malformed_blocks_are_compression_errors() -> None:
    """The reason goes to the peer: it says nothing of this process, such as an address."""
    for content in (b"\xff" * 6, b"\xc5"):
        with pytest.raises(ProtocolError) as caught:
            HeaderDecoder(RPCS).decode(content)
        assert caught.value.code == frames.COMPRESSION_ERROR
        assert str(caught.value) == "a malformed header block"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1H", 3600.0),
        ("2M", 120.0),
        ("3S", 3.0),
        ("4m", 0.004),
        ("5u", 5e-6),
        ("6n", 6e-9),
        ("99999999S", 99_999_999.0),
        ("100000000S", None),
        ("", None),
        ("5", None),
        ("-1S", None),
        ("1.5S", None),
        ("٣S", None),
    ],
)
def test_timeouts_are_read_in_all_units(text: str, seconds: float | None) -> None:
    assert read_timeout(text) == (None if seconds is None else pytest.approx(seconds))


def test_status_codes_are_those_of_grpcio() -> None:
    assert {code.name: code.value[0] for code in grpc.StatusCode} == headers._STATUS_CODES


def test_response_headers_are_those_of_grpc() -> None:
    assert decoded(RESPONSE_HEADERS) == {
        ":status": "200",
        "content-type": "application/grpc",
        "grpc-accept-encoding": "identity,deflate,gzip",
    }


@given(ID)
def test_trailers_of_a_success_have_its_request_id(request_id: str) -> None:
    assert decoded(trailers(OK, request_id)) == {"grpc-status": "0", "x-request-id": request_id}


@given(st.text(max_size=300), ID)
def test_trailers_of_a_failure_carry_any_message(message: str, request_id: str) -> None:
    fields = decoded(trailers(Status("NOT_FOUND", message), request_id))
    assert fields["grpc-status"] == "5"
    assert fields["x-request-id"] == request_id
    assert fields["grpc-message"].isascii()
    assert unquote(fields["grpc-message"]) == message


@pytest.mark.parametrize("timeout", ["", "5", "-1S", "1.5S", "100000000S", "1 S"])
def test_a_malformed_timeout_refuses_its_call(timeout: str) -> None:
    headers = HeaderDecoder(RPCS).decode(block(UNARY, {"grpc-timeout": timeout}))
    assert headers.timeout is None
    assert headers.refusal is not None
    assert headers.refusal.code == "INTERNAL"  # as in grpcio and gRPC-Go
    assert "grpc-timeout is malformed" in headers.refusal.message


def test_metadata_above_the_limit_refuses_its_call_and_keeps_hpacks_table_in_step() -> None:
    encoder, decoder = hpack.Encoder(), HeaderDecoder(RPCS)
    fields = [(":method", "POST"), (":scheme", "http"), (":path", UNARY), ("x-request-id", "mine")]
    large = [("x-large", "y" * MAX_HEADER_LIST, True)]  # never indexed
    refusal = decoder.decode(bytes(encoder.encode(fields + large))).refusal
    assert refusal is not None
    assert (refusal.code, "16384 bytes" in refusal.message) == ("RESOURCE_EXHAUSTED", True)
    repeated = bytes(encoder.encode(fields))
    assert len(repeated) == len(fields)  # all are in HPACK's tables by now
    headers = decoder.decode(repeated)
    assert (headers.refusal, headers.path, headers.request_id) == (None, UNARY, "mine")


def test_metadata_is_measured_as_http2_counts_it() -> None:
    """RFC 9113, 6.5.2: 32 bytes more per field than its name and value."""
    limit_is_reached_by = (MAX_HEADER_LIST - header_list_size(block())) // (32 + 6)
    for count in (limit_is_reached_by, limit_is_reached_by + 1):
        more = {f"x-{index:04}": "" for index in range(count)}
        refusal = HeaderDecoder(RPCS).decode(block(UNARY, more)).refusal
        assert (refusal is None) is (count == limit_is_reached_by)


def test_a_header_list_above_the_hard_limit_is_a_compression_error() -> None:
    """Decoding ends inside the block, so HPACK's table is lost, and the connection with it."""
    content = bytes(hpack.Encoder().encode([("x", "y" * 4000)])) + b"\xbe" * 40
    with pytest.raises(ProtocolError) as caught:
        HeaderDecoder(RPCS).decode(content)
    assert caught.value.code == frames.COMPRESSION_ERROR


def test_large_blocks_are_not_kept() -> None:
    decoder = HeaderDecoder(RPCS)
    decoder.decode(block(UNARY, {"x-large": "y" * 5000}))
    assert decoder._cache == {}


@given(st.text(max_size=300), ID, st.integers(0, 2000))
def test_a_message_is_cut_to_the_peers_header_list_at_a_character(
    message: str, request_id: str, limit: int
) -> None:
    content = trailers(Status("NOT_FOUND", message), request_id, limit)
    fields = decoded(content)
    text = fields["grpc-message"]
    assert unquote(text, errors="strict") == message[: len(unquote(text))]
    whole = len(decoded(trailers(Status("NOT_FOUND", message), request_id))["grpc-message"])
    size = header_list_size(RESPONSE_HEADERS + content)
    assert size <= limit or text == ""
    if len(text) < whole:  # no more is cut than has to be: a character takes up to 12 bytes
        assert size > limit - 13


def test_an_http_error_has_its_status_alone() -> None:
    assert decoded(http_error(415)) == {":status": "415"}


def test_calls_that_share_a_refusal_have_their_own_ids_and_obey_their_peers_header_list() -> None:
    shared = RetryLater("UNAVAILABLE", "Full; the expected wait is 2.5 seconds.")
    shared.seconds = 3
    expected = {
        "grpc-status": "14",
        "grpc-message": "Full; the expected wait is 2.5 seconds.",
        "grpc-retry-pushback-ms": "3000",
    }
    for request_id in ("one", "another"):
        assert decoded(trailers(shared, request_id)) == {**expected, "x-request-id": request_id}
    small = decoded(trailers(shared, "third", 400))
    assert expected["grpc-message"].startswith(small["grpc-message"])
    assert len(small["grpc-message"]) < len(expected["grpc-message"])
    assert decoded(trailers(shared, "fourth")) == {**expected, "x-request-id": "fourth"}
