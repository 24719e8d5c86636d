"""An HTTP request and response as plain values, the same for the fast lane and for Flask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

JSON = "application/json"


class HttpRequest(NamedTuple):
    """A whole request. `header` looks a header up by its lower-case name."""

    header: Callable[[str], str | None]
    body: bytes
    query: str = ""


class HttpResponse(NamedTuple):
    """A whole response; Content-Length is the transport's business."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


def json_response(value: Any, status: int = 200) -> HttpResponse:
    """Encode a value, numpy arrays included (floats in their shortest exact form)."""
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return HttpResponse(status, [("content-type", JSON)], body)
