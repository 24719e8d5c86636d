from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import InvalidArgument, RequestTooLarge
from service.core.off_loop import INLINE_BYTES
from service.http.message import (
    JSON,
    check_json_size,
    json_response,
    parse_json,
    parse_object,
    to_json,
)
from tests.service.recording_bytes import RecordingBytes

LIMIT = 2 * 1024 * 1024

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(VALUES)
def test_json_survives_encoding(value: Any) -> None:
    try:
        encoded = to_json(value)
    except TypeError:
        return  # a lone surrogate has no UTF-8
    assert parse_json(encoded, LIMIT) == value


@given(st.binary(max_size=40))
def test_arbitrary_bytes_are_parsed_or_rejected(body: bytes) -> None:
    try:
        parsed = asyncio.run(parse_object(body, LIMIT))
    except InvalidArgument:
        return
    assert isinstance(parsed, dict)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "is empty"),
        (b"{", "is not valid JSON"),
        (b"NaN", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 20_000, "is not valid JSON"),
    ],
)
def test_body_that_is_not_json_is_rejected(body: bytes, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parse_json(body, LIMIT)


def test_empty_body_is_an_empty_object() -> None:
    assert asyncio.run(parse_object(b"", LIMIT)) == {}
    with pytest.raises(InvalidArgument, match="JSON object"):
        asyncio.run(parse_object(b"[]", LIMIT))


def test_json_above_the_limit_is_refused_with_the_way_to_send_it() -> None:
    check_json_size(LIMIT, LIMIT)
    with pytest.raises(RequestTooLarge, match=r"2097152 bytes \(max_json_bytes\).*as binary"):
        check_json_size(LIMIT + 1, LIMIT)
    with pytest.raises(RequestTooLarge, match="max_json_bytes"):
        asyncio.run(parse_object(b"{" + b" " * LIMIT + b"}", LIMIT))


@pytest.mark.parametrize(
    ("unit", "what"),
    [
        (b"[0],", "32768 lists and objects"),
        (b"[],", "32768 lists and objects"),
        (b"{},", "32768 lists and objects"),
        (b'{"a":0},', "32768 lists and objects"),
        (b"[" * 900 + b"]" * 900 + b",", "32768 lists and objects"),
        (b'"a",', "131072 strings"),
        (b'"",', "131072 strings"),
    ],
)
def test_bodies_that_take_long_to_parse_are_refused_before(unit: bytes, what: str) -> None:
    """The end is not valid JSON: the parser would have said so."""
    with pytest.raises(InvalidArgument, match=f"more than {what}"):
        parse_json(b"[" + unit * (LIMIT // len(unit)), LIMIT)


def test_a_small_limit_leaves_room_for_the_lists_of_an_image() -> None:
    image = [[[0] * 28] * 28] * 2
    assert parse_json(orjson.dumps(image), 4096) == image


def test_many_keys_are_refused_before_parsing() -> None:
    with pytest.raises(InvalidArgument, match="131072 strings"):
        parse_json(b"{" + b",".join(b'"%x":0' % i for i in range(150_000)), LIMIT)


def test_only_the_json_before_binary_data_is_counted() -> None:
    assert parse_json(b"[0]" + b"[" * 100_000, LIMIT, 3) == [0]


def test_long_object_is_parsed_off_the_event_loop() -> None:
    body = RecordingBytes(b'{"a":"' + b"x" * INLINE_BYTES + b'"}')
    assert asyncio.run(parse_object(body, LIMIT)) == {"a": "x" * INLINE_BYTES}
    assert len(body.threads) == 1
    assert threading.get_ident() not in body.threads


def test_floats_have_their_shortest_exact_form() -> None:
    assert to_json(np.array([0.1, 1e-7], np.float32)) == b"[0.1,1e-7]"


def test_json_response_names_its_content_type() -> None:
    response = json_response({"a": np.arange(2)}, 503)
    assert response.status == 503
    assert response.headers == [("content-type", JSON)]
    assert orjson.loads(response.body) == {"a": [0, 1]}


NUMBERS = st.floats() | st.integers(-(2**53), 2**53)
ODD_VALUES = st.recursive(
    NUMBERS | st.text() | st.booleans(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(ODD_VALUES)
def test_numbers_that_json_lacks_are_read_where_they_may_be(value: Any) -> None:
    body = json.dumps([value, float("nan")], ensure_ascii=False).encode()
    parsed = parse_json(body, 1 << 20, takes_infinity=True)
    assert json.dumps(parsed) == json.dumps([value, float("nan")])
    with pytest.raises(InvalidArgument):
        parse_json(body, 1 << 20)


@pytest.mark.parametrize(
    "body",
    [
        *(b"[NaN", b"[-NaN]", b"[NaNa]", b"[--Infinity]", b"[Inf]", b"[NaN,01]", b"[NaN,'a']"),
        *(b'["\\ud800",NaN]', b'["' + b'\\"' * 30_000 + b",NaN]", b'[NaN,"\\', b'{"a":NaN,}'),
        b"[" + b"NaN," * 20_000 + b"1]",
    ],
)
def test_what_is_not_json_beside_them_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidArgument, match="not valid JSON"):
        parse_json(body, 1 << 20, takes_infinity=True)
