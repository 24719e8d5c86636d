from __future__ import annotations

from typing import Any, NotRequired, TypedDict

import pytest
from openapi_schema_validator import OAS31Validator

from service.http.openapi.schemas import (
    INTEGER,
    STRING,
    list_of,
    map_of,
    record,
    request_record,
    schema_of,
)


class Some(TypedDict):
    """What it is. More of it.

    And more.
    """

    name: str
    sizes: list[int]
    ratio: NotRequired[float | None]


class Partial(TypedDict, total=False):
    by_name: dict[str, bool]


def test_a_typed_dictionary_becomes_an_object() -> None:
    schema = schema_of(Some)
    assert schema["description"] == "What it is. More of it."
    assert schema["required"] == ["name", "sizes"]
    assert schema["properties"]["sizes"] == list_of(INTEGER)
    assert schema["properties"]["ratio"] == {"anyOf": [{"type": "number"}, {"type": "null"}]}
    partial = schema_of(Partial)
    assert partial["properties"] == {"by_name": map_of({"type": "boolean"})}
    assert "required" not in partial


@pytest.mark.parametrize(
    ("schema", "value", "fits"),
    [
        (record("", a=STRING), {"a": "x"}, True),
        (record("", a=STRING), {}, False),
        (record("", a=STRING), {"a": "x", "b": 1}, False),
        (record("", "a", a=STRING), {}, True),
        (request_record("", "a", a=STRING), {"a": "x", "b": 1}, True),
        (request_record("", "a", a=STRING, b=INTEGER), {"b": 1}, False),
        (request_record("", a=STRING), {"a": 1}, False),
    ],
)
def test_answers_have_no_other_fields_and_requests_may(
    schema: dict[str, Any], value: Any, fits: bool
) -> None:
    assert OAS31Validator(schema).is_valid(value) is fits
