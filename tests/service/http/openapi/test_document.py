from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from openapi_spec_validator import validate

from service.core.errors import ServiceError
from service.http.openapi.document import document
from service.http.routes import ROUTES

DOCUMENT = document(ROUTES)


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            if method != "parameters":
                yield method.upper(), path, operation


def test_document_is_valid() -> None:
    validate(DOCUMENT)


def test_operations_are_the_routes_with_what_flask_adds() -> None:
    routes = {(route.method, re.sub(r"<(\w+)>", r"{\1}", route.path)) for route in ROUTES}
    expected = set(routes)
    expected |= {("HEAD", path) for method, path in routes if method == "GET"}
    expected |= {("OPTIONS", path) for _, path in routes}
    assert {(method, path) for method, path, _ in operations()} == expected


def test_operations_have_different_identifiers() -> None:
    identifiers = [operation["operationId"] for *_, operation in operations()]
    assert len(set(identifiers)) == len(identifiers)


def test_every_status_of_an_error_has_a_response() -> None:
    def statuses(kind: type[ServiceError]) -> set[int]:
        return {kind.http_status}.union(*map(statuses, kind.__subclasses__()))

    described = {
        int(status)
        for _, _, operation in operations()
        for status, answer in operation["responses"].items()
        if "responses/" in answer.get("$ref", "")
    }
    assert statuses(ServiceError) <= described | {405}
