from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from service.repository.json_schema import mistake

SCHEMAS: list[dict[str, Any]] = [
    {"type": "integer", "minimum": 1, "maximum": 5},
    {"type": ["number", "null"], "exclusiveMinimum": 0},
    {"enum": [1, "a", None]},
    {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "boolean"}}]},
    {"type": "array", "minItems": 1, "maxItems": 2, "items": {"enum": [True, 2]}},
    {"type": "object", "required": ["a"], "additionalProperties": False, "properties": {"a": {}}},
    {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "additionalProperties": {"enum": [1]},
    },
    {"$defs": {"n": {"type": "integer"}}, "items": {"$ref": "#/$defs/n"}, "type": "array"},
]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, 5, 6, 1.0, 1.5, 1e300, "a", "b", [], [True], [2, True], [1]),
    *([2, 2, 2], [1.0, 3], ["a"], {}, {"a": "b"}, {"a": 1}, {"b": 1}, {"a": "b", "b": 1}),
    {"a": "b", "b": 2},
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_values_fit_that_the_package_jsonschema_accepts(schema: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(schema)
    for value in VALUES:
        assert (mistake(schema, value) == "") == validator.is_valid(value), (schema, value)


def test_the_innermost_comment_is_quoted_with_its_place() -> None:
    schema = {
        "type": "object",
        "$comment": "must be an object",
        "properties": {
            "a": {
                "$comment": "must be A",
                "properties": {"b": {"enum": [1], "$comment": "must be 1"}},
            }
        },
    }
    assert mistake(schema, []) == "must be an object"
    assert mistake(schema, {"a": {"b": 2}}) == "a.b must be 1"
    assert mistake(schema, {"a": {"b": 1}}) == ""
