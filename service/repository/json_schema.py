"""Checks JSON values against a JSON Schema, as far as the schemas of this package need it.

A schema says in its `$comment` what an error says of a value that does not fit: "must be ...".

Source: JSON Schema, draft 2020-12.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import ge, gt, le
from typing import Any

Schema = Mapping[str, Any]

_TYPES: dict[str, type | tuple[type, ...]] = {
    "array": list,
    "boolean": bool,
    "integer": int,
    "null": type(None),
    "number": (int, float),
    "object": dict,
    "string": str,
}
_BOUNDS = (("minimum", ge), ("maximum", le), ("exclusiveMinimum", gt))


def mistake(schema: Schema, value: Any) -> str:
    """What is wrong with a value: the place and the comment; empty if it fits."""
    return _mistake(schema, value, schema, "")


def _mistake(schema: Schema, value: Any, root: Schema, place: str) -> str:
    if _fits(schema, value, root):
        return ""
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            deeper = f"{place}.{name}" if place else name
            if name in value and (found := _mistake(inner, value[name], root, deeper)):
                return found
    comment = schema.get("$comment", "does not fit its schema")
    return f"{place} {comment}" if place else comment


def _fits(schema: Schema, value: Any, root: Schema) -> bool:
    """Whether a value fits a schema inside `root`, which holds the definitions."""
    if reference := schema.get("$ref"):
        schema = root["$defs"][reference.removeprefix("#/$defs/")]
    kinds = schema.get("type")
    is_of_type = kinds is None or any(
        _is(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)
    )
    is_listed = "enum" not in schema or any(
        value == each and isinstance(value, bool) == isinstance(each, bool)
        for each in schema["enum"]
    )
    is_any = "anyOf" not in schema or any(_fits(each, value, root) for each in schema["anyOf"])
    if not (is_of_type and is_listed and is_any):
        return False
    if isinstance(value, list):
        low, high = schema.get("minItems", 0), schema.get("maxItems", len(value))
        items = schema.get("items", {})
        return low <= len(value) <= high and all(_fits(items, each, root) for each in value)
    if isinstance(value, dict):
        return set(schema.get("required", ())) <= value.keys() and all(
            _fits_property(schema, name, each, root) for name, each in value.items()
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        return all(is_within(value, schema[key]) for key, is_within in _BOUNDS if key in schema)
    return True


def _fits_property(schema: Schema, name: str, value: Any, root: Schema) -> bool:
    others = schema.get("additionalProperties", {})
    inner = schema.get("properties", {}).get(name, others)
    return inner if isinstance(inner, bool) else _fits(inner, value, root)


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    is_whole = kind == "integer" and isinstance(value, float) and value.is_integer()
    return is_whole or isinstance(value, _TYPES[kind])
