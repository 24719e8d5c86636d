from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import InvalidArgument
from service.http.message import JSON, json_response, parse_json, parse_object, to_json

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
    assert parse_json(encoded) == value


@given(st.binary(max_size=40))
def test_arbitrary_bytes_are_parsed_or_rejected(body: bytes) -> None:
    try:
        parsed = parse_object(body)
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
        (b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_body_that_is_not_json_is_rejected(body: bytes, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parse_json(body)


def test_empty_body_is_an_empty_object() -> None:
    assert parse_object(b"") == {}
    with pytest.raises(InvalidArgument, match="JSON object"):
        parse_object(b"[]")


def test_floats_have_their_shortest_exact_form() -> None:
    assert to_json(np.array([0.1, 1e-7], np.float32)) == b"[0.1,1e-7]"


def test_json_response_names_its_content_type() -> None:
    response = json_response({"a": np.arange(2)}, 503)
    assert response.status == 503
    assert response.headers == [("content-type", JSON)]
    assert orjson.loads(response.body) == {"a": [0, 1]}
