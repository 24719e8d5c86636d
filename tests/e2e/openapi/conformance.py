"""Whether an answer is one that the OpenAPI document describes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from typing import Any

from openapi_schema_validator import OAS31Validator

from service.http.openapi.document import document
from service.http.routes import ROUTES

DOCUMENT = document(ROUTES)
# Of HTTP itself; OpenAPI ignores content-type among the headers of an answer.
_OF_HTTP = {"connection", "content-length", "content-type", "date", "keep-alive", "server"}
_PATTERNS = {
    path: re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path)) + "/?")
    for path in DOCUMENT["paths"]
}


def check(method: str, target: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Fail unless the document has this answer to a request; names of headers are lower-case."""
    path = target.partition("?")[0]
    items = [DOCUMENT["paths"][name] for name, rule in _PATTERNS.items() if rule.fullmatch(path)]
    operations = [item[method.lower()] for item in items if method.lower() in item]
    if method != method.upper() or not operations:
        # What the document's description says of other methods and paths.
        assert status in ((401, 405, 501) if items else (401, 404, 501))
        assert status != 405 or "allow" in headers
        name = HTTPStatus(status).phrase.replace(" ", "")
        response = _resolved({"$ref": f"#/components/responses/{name}"})
    else:
        responses = operations[0]["responses"]
        assert str(status) in responses, f"{status} is not one of {', '.join(responses)}"
        response = _resolved(responses[str(status)])
    for name, header in response["headers"].items():
        assert name in headers or not _resolved(header).get("required"), f"{name} is missing"
    assert headers.keys() - response["headers"].keys() <= _OF_HTTP
    content = response.get("content", {})
    if not content:
        assert body == b""
        return
    kind = headers["content-type"].partition(";")[0]
    assert kind in content
    if kind == "application/json":
        errors = [*_validator(json.dumps(content[kind]["schema"])).iter_errors(json.loads(body))]
        assert errors == []


def _resolved(node: dict[str, Any]) -> dict[str, Any]:
    value: Any = node
    if "$ref" in node:
        value = DOCUMENT
        for name in node["$ref"].removeprefix("#/").split("/"):
            value = value[name]
    return value


@cache
def _validator(schema: str) -> OAS31Validator:
    return OAS31Validator(json.loads(schema) | {"components": DOCUMENT["components"]})
