"""The OpenAPI document of a table of routes.

Source: OpenAPI Specification 3.1.1, https://spec.openapis.org/oas/v3.1.1
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Protocol

from service import __version__
from service.access.gate import Need
from service.access.keys import Scope
from service.access.origins import SAFE_HEADERS
from service.core import errors
from service.core.errors import ServiceError
from service.http.message import JSON
from service.http.openapi.contracts import OPTIONS, PAGES, TAGS, Contract
from service.http.openapi.schemas import SCHEMAS, STRING, VERSION, Schema, reference
from service.http.pictures import FORM, PICTURES
from service.http.static_files import PAGE_HEADERS

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

A request that fails gets `{"error": "one sentence"}`. A path that is not listed here, with or
without a slash at its end, gets 404; a method that its path does not have gets 405, with the header
`Allow`.

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
_HEADERS: dict[str, dict[str, Any]] = {
    "x-request-id": {
        "required": True,
        "schema": STRING,
        "description": "The id that the request had, or a new one.",
    },
    "allow": {"schema": STRING, "description": "The methods of the path."},
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
    **{
        name: {"required": True, "schema": STRING, "description": "Keeps browsers strict."}
        for name, _ in SAFE_HEADERS
    },
    **{
        name: {"schema": STRING, "description": "For a page whose origin is listed."}
        for name in ("access-control-allow-origin", "access-control-expose-headers")
    },
}
# On every answer, but see `_WITHOUT_ID`.
_ALWAYS = (
    "x-request-id",
    "vary",
    *(name for name, _ in SAFE_HEADERS),
    "access-control-allow-origin",
    "access-control-expose-headers",
)
_OF_PAGES = {name: STRING for name, _ in PAGE_HEADERS if name not in _HEADERS}
_OF_ERRORS = (*_ALWAYS, "retry-after", "www-authenticate", "allow")
_TOO_MANY_HEADERS = 431
# What a client is told of each kind of failure.
_FAILURES = {
    400: "The request is wrong, or the model cannot be loaded; sending it again will fail again.",
    401: "A valid key is needed.",
    403: "The key lacks the scope, the settings do not allow it, or a web page of another server "
    "asks.",
    404: "What the request names does not exist: the path, the model or its version, the region.",
    405: "The path exists, but does not accept this method.",
    408: "The body did not arrive in time.",
    409: "The name is taken.",
    413: "The body, the picture or the batch exceeds a limit.",
    415: "The endpoint does not read this content type.",
    429: "The caller has used up what its limits allow; Retry-After says when to try again.",
    431: "The headers are too many or too large.",
    500: "The server failed, and its log says why under the request id; or the model's answer "
    "cannot be used.",
    501: "The protocol defines it, but this server does not implement it.",
    503: "The server is busy or cannot do this now; try again, after the seconds of Retry-After if "
    "it has them.",
    504: "The deadline or timeout of the request, or a limit of the server, passed before the "
    "answer.",
}
# Bytes that are no request are answered with these as well, before anything has given them an id.
_WITHOUT_ID = (400, 431, 503)


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
                    _phrase(status).replace(" ", ""): _error_response(status, description)
                    for status, description in _FAILURES.items()
                },
                "Head": _without_id(
                    _answer("The error, without its body.", {}, _OF_ERRORS, _OF_PAGES)
                ),
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
    headers = [*_ALWAYS, *(["content-encoding"] if compress else [])]
    of_pages = _OF_PAGES if contract.tag == PAGES else {}
    answers = {200: contract.answer, **contract.otherwise}
    responses = {
        str(status): _answer(
            _phrase(status), content, headers, {**contract.answer_headers, **of_pages}
        )
        for status, content in answers.items()
        if content is not None
    }
    refusals = () if scope is None else _REFUSALS
    kinds = (*_COMMON, *refusals, *contract.errors)
    for status in (*(kind.http_status for kind in kinds), _TOO_MANY_HEADERS):
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


def _error_response(status: int, description: str) -> dict[str, Any]:
    names = list(_ALWAYS)
    if status in (errors.Overloaded.http_status, errors.TooManyRequests.http_status):
        names.append("retry-after")
    if status == errors.Unauthenticated.http_status:
        names.append("www-authenticate")
    if status == errors.MethodNotAllowed.http_status:
        names.append("allow")
    answer = _answer(description, {JSON: reference("Error")}, names, _OF_PAGES)
    return _without_id(answer) if status in _WITHOUT_ID else answer


def _without_id(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer, whose header x-request-id may be missing."""
    answer["headers"]["x-request-id"] = {**_HEADERS["x-request-id"], "required": False}
    return answer
