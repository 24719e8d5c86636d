"""The OpenAPI document of a table of routes.

Source: OpenAPI Specification 3.1.1, https://spec.openapis.org/oas/v3.1.1
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Protocol

from service import __version__
from service.access.gate import Need
from service.access.keys import Scope
from service.core import errors
from service.core.errors import ServiceError
from service.http.message import JSON
from service.http.openapi.contracts import OPTIONS, TAGS, Contract
from service.http.openapi.schemas import SCHEMAS, STRING, VERSION, Schema, reference
from service.http.pictures import FORM, PICTURES

# What any request may be answered with: its body is read and decompressed before its route runs.
_COMMON: tuple[type[ServiceError], ...] = (
    errors.InvalidArgument,
    errors.RequestTimeout,
    errors.RequestTooLarge,
    errors.UnsupportedMediaType,
    errors.InternalError,
    errors.InFlightLimit,
    errors.Forbidden,  # a web page of another server, or another name of this one
)
# Of callers, before their body is read.
_REFUSALS: tuple[type[ServiceError], ...] = (
    errors.Unauthenticated,
    errors.TooManyRequests,
)
_PATH_PARAMETER = re.compile(r"<(\w+)>")
_PLACE: Schema = {"type": "string", "pattern": "^[^/]+$"}
_PLACES = {"version": VERSION}
_ABOUT = """\
This server classifies handwritten digits, and whatever else its models know: it takes pictures and
returns probabilities, or takes and returns tensors by the Open Inference Protocol (KServe V2).

A request that fails gets `{"error": "one sentence"}`. A path that is not listed here gets 404; a
method that its path does not have gets 405, with the header `Allow`.

If the server has keys, a call needs one that has the scope of the operation: predict, read, admin
or metrics. Without a valid one, all but the operations that need none answer the same 401, also for
paths that do not exist.

Requests from web pages of other servers get 403 unless their origin is listed in allowed_origins;
a caller that exceeds its limits gets 429."""
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key of `mnist-keys add`."},
    "apiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "The same key; send one of the two headers.",
    },
}
_PARAMETERS = {
    "x-request-id": {
        "name": "x-request-id",
        "in": "header",
        "schema": STRING,
        "description": "Names the request in the server's log: up to 128 printable characters.",
    },
    "content-encoding": {
        "name": "content-encoding",
        "in": "header",
        "schema": {"type": "string", "enum": ["gzip", "deflate", "identity", ""]},
        "description": "How the body is compressed.",
    },
    "accept-encoding": {
        "name": "accept-encoding",
        "in": "header",
        "schema": STRING,
        "description": "How the answer may be compressed: gzip or deflate.",
    },
}
_HEADERS = {
    "x-request-id": {
        "required": True,
        "schema": STRING,
        "description": "The id that the request had, or a new one.",
    },
    "retry-after": {
        "schema": {"type": "integer", "minimum": 1},
        "description": "The expected wait in seconds, if waiting helps.",
    },
    "www-authenticate": {"schema": STRING, "description": "Bearer: how to send a key."},
    "vary": {"schema": STRING, "description": "Headers of the request that change the answer."},
    "content-encoding": {
        "schema": {"type": "string", "enum": ["gzip", "deflate"]},
        "description": "How the body is compressed, if it is.",
    },
}


class Described(Protocol):
    """What the document needs of a route."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def operation(self) -> str: ...
    @property
    def contract(self) -> Contract: ...
    @property
    def scope(self) -> Scope | None: ...
    @property
    def compress(self) -> bool: ...


def document(routes: Iterable[Described]) -> dict[str, Any]:
    """The document of the routes, and of what Flask adds: HEAD to each GET, OPTIONS to each path.

    `path` of a route is in Flask's notation.
    """
    paths: dict[str, dict[str, Any]] = {}
    identifiers: set[str] = set()
    for route in routes:
        names = _PATH_PARAMETER.findall(route.path)
        places = [_parameter(name, "path", _PLACES.get(name, _PLACE)) for name in names]
        path = _PATH_PARAMETER.sub(r"{\1}", route.path)
        item = paths.setdefault(path, {})
        identifier = route.contract.name or route.operation
        if identifier in identifiers:
            identifier += f"_of_{names[-1]}"
        identifiers.add(identifier)
        item[route.method.lower()] = _operation(
            identifier, places, route.contract, scope=route.scope, compress=route.compress
        )
        if route.method == "GET":
            item["head"] = _without_content(
                _operation(
                    f"head_{identifier}",
                    places,
                    route.contract,
                    scope=route.scope,
                    compress=route.compress,
                )
            )
        # Its answer depends on the path alone, whatever the parameters are.
        places = [_parameter(name, "path", _PLACE) for name in names]
        words = "_".join(re.findall(r"\w+", path)) or "index"
        item["options"] = _operation(f"options_{words}", places, OPTIONS, scope="any")
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "mnist-service",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in TAGS],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "parameters": _PARAMETERS,
            "headers": _HEADERS,
            "securitySchemes": _SCHEMES,
            "responses": {
                **{
                    _phrase(status).replace(" ", ""): _error_response(status)
                    for status in sorted({kind.http_status for kind in _kinds_of(ServiceError)})
                },
                "Head": _answer("The error, without its body.", {}, ["x-request-id"]),
            },
        },
    }


def _operation(
    identifier: str,
    places: list[Schema],
    contract: Contract,
    *,
    scope: Need,
    compress: bool = False,
) -> dict[str, Any]:
    shared = ["x-request-id"]
    shared += ["content-encoding"] if contract.body else []
    shared += ["accept-encoding"] if compress else []
    headers = ["x-request-id", *(["vary", "content-encoding"] if compress else [])]
    answers = {200: contract.answer, **contract.otherwise}
    responses = {
        str(status): _answer(_phrase(status), content, headers, contract.answer_headers)
        for status, content in answers.items()
        if content is not None
    }
    refusals = () if scope is None else _REFUSALS
    for kind in (*_COMMON, *refusals, *contract.errors):
        status = kind.http_status
        name = _phrase(status).replace(" ", "")
        responses.setdefault(str(status), {"$ref": f"#/components/responses/{name}"})
    operation: dict[str, Any] = {
        "operationId": identifier,
        "tags": [contract.tag],
        "summary": contract.summary,
        "parameters": [
            *places,
            *(_parameter(name, "query", schema) for name, schema in contract.query.items()),
            *(_parameter(name, "header", schema) for name, schema in contract.headers.items()),
            *({"$ref": f"#/components/parameters/{name}"} for name in shared),
        ],
        "responses": dict(sorted(responses.items())),
    }
    if scope is not None:
        # An empty requirement too: a server may have no keys, or let callers do this without one.
        scopes = [] if scope == "any" else [scope]
        operation["security"] = [{}, *({scheme: scopes} for scheme in _SCHEMES)]
    if contract.description:
        operation["description"] = contract.description
    if contract.body:
        operation["requestBody"] = {
            "required": contract.is_body_required,
            "content": _content(contract.body),
        }
    return operation


def _parameter(name: str, place: str, schema: Schema) -> Schema:
    return {"name": name, "in": place, **({"required": True} if place == "path" else {})} | {
        "schema": schema
    }


def _content(kinds: Mapping[str, Schema]) -> dict[str, Any]:
    """The media types of a body. A file in a form is one of the pictures."""
    content: dict[str, Any] = {kind: {"schema": schema} for kind, schema in kinds.items()}
    if FORM in content:
        content[FORM]["encoding"] = {"image": {"contentType": ", ".join(PICTURES)}}
    return content


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase


def _answer(
    description: str,
    content: Mapping[str, Schema],
    shared: Iterable[str],
    headers: Mapping[str, Schema] = {},
) -> dict[str, Any]:
    """An answer with headers of `_HEADERS`, by name, and headers of its own."""
    answer: dict[str, Any] = {
        "description": description,
        "headers": {
            **{name: {"$ref": f"#/components/headers/{name}"} for name in shared},
            **{name: {"schema": schema} for name, schema in headers.items()},
        },
    }
    if content:
        answer["content"] = _content(content)
    return answer


def _without_content(operation: dict[str, Any]) -> dict[str, Any]:
    """The operation of HEAD, made of that of GET: the same headers, and no body."""
    for answer in operation["responses"].values():
        if "$ref" in answer:
            answer["$ref"] = "#/components/responses/Head"
        else:
            answer.pop("content", None)
    return operation


def _error_response(status: int) -> dict[str, Any]:
    names = ["x-request-id"]
    if status in (errors.Overloaded.http_status, errors.TooManyRequests.http_status):
        names.append("retry-after")
    if status == errors.Unauthenticated.http_status:
        names.append("www-authenticate")
    kinds = [kind for kind in _kinds_of(ServiceError) if kind.http_status == status]
    description = " ".join((kind.__doc__ or "").partition("\n")[0] for kind in kinds)
    return _answer(description, {JSON: reference("Error")}, names)


def _kinds_of(base: type[ServiceError]) -> Iterator[type[ServiceError]]:
    """A class of errors, and all classes that inherit from it."""
    yield base
    for kind in base.__subclasses__():
        yield from _kinds_of(kind)
