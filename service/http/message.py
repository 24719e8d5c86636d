"""HTTP requests and responses as plain values, the same for the front and for Flask."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import orjson

from service.core.errors import InvalidArgument

JSON = "application/json"
OCTETS = "application/octet-stream"


class HttpRequest(NamedTuple):
    """A whole request; `header` returns a header by its lower-case name."""

    method: str
    path: str
    header: Callable[[str], str | None]
    body: bytes
    query: str = ""
    caller: str = ""  # see core.callers


class HttpResponse(NamedTuple):
    """A whole response; the transport adds Content-Length."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


def to_json(value: Any) -> bytes:
    """Encode a value, which may contain numpy arrays, with floats in their shortest exact form."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def json_response(value: Any, status: int = 200) -> HttpResponse:
    """A response whose body is `value` as JSON; numpy arrays become lists."""
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return HttpResponse(status, [("content-type", JSON)], body)


def parse_json(body: bytes | memoryview) -> Any:
    """Parse strict JSON (RFC 8259, so no NaN). Raises InvalidArgument."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        reason = "is empty" if not body else f"is not valid JSON: {error}"
        raise InvalidArgument(f"The body {reason}.") from None


def parse_object(body: bytes | memoryview) -> dict[str, Any]:
    """Parse a JSON object; an empty body counts as {}. Raises InvalidArgument."""
    parsed = parse_json(body) if body else {}
    if not isinstance(parsed, dict):
        raise InvalidArgument("The body must be a JSON object.")
    return parsed


# Takes the object that its route needs, the request, and the path parameters as keywords.
Handler = Callable[..., Awaitable[HttpResponse]]
