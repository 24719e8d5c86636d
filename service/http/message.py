"""HTTP requests and responses as plain values, the same for the front and for Flask."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import orjson

from service.core.errors import InvalidArgument, RequestTooLarge
from service.core.off_loop import INLINE_BYTES, off_loop
from service.core.trace import Trace

JSON = "application/json"
OCTETS = "application/octet-stream"
# Bytes of max_json_bytes per list or object, and per string. They take 15 and 5 times as long to
# parse as numbers, so a body may not consist of them.
_BYTES_PER_LIST = 64
_BYTES_PER_STRING = 16
_MOST_WITH_INFINITY = 64 * 1024
# A string, so that what is in it stays, or a number that JSON lacks. A string without an end takes
# all that is left, so that each byte is looked at once.
_NOT_FINITE = re.compile(rb'("(?:[^"\\]|\\.)*+"?)|-?\bInfinity\b|\bNaN\b', re.DOTALL)
_FEW = 1024  # lists or strings that are accepted at any limit


class HttpRequest(NamedTuple):
    """A whole request; `header` returns a header by its lower-case name."""

    method: str
    path: str
    header: Callable[[str], str | None]
    body: bytes
    query: str = ""
    caller: str = ""  # see core.callers
    trace: Trace | None = None  # None for a request that is not traced
    arrived: float = 0.0  # when its headers had arrived, in loop time, if it has a `?timeout=`


class HttpResponse(NamedTuple):
    """A whole response; the transport adds Content-Length."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


def media_type(request: HttpRequest) -> str:
    """The content type without parameters, in lower case; empty if there is none."""
    return (request.header("content-type") or "").partition(";")[0].strip().lower()


def to_json(value: Any) -> bytes:
    """Encode a value, which may contain numpy arrays, with floats in their shortest exact form."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def json_response(value: Any, status: int = 200) -> HttpResponse:
    """A response whose body is `value` as JSON; numpy arrays become lists."""
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return HttpResponse(status, [("content-type", JSON)], body)


def server_timing(seconds: tuple[float, float]) -> tuple[str, str]:
    """The header Server-Timing (W3C): milliseconds of the picture, and of the model."""
    before, run = seconds
    return "server-timing", f"picture;dur={1000 * before:.3f}, model;dur={1000 * run:.3f}"


def check_json_size(size: int, limit: int) -> None:
    """Raise RequestTooLarge for JSON of more than `limit` bytes, the setting max_json_bytes."""
    if size > limit:
        raise RequestTooLarge(
            f"The JSON is larger than {limit} bytes (max_json_bytes). Send larger data as binary: "
            f"raw pixels as {OCTETS}, or tensors after a JSON header "
            "(Inference-Header-Content-Length)."
        )


def parse_json(
    body: bytes, limit: int, end: int | None = None, *, takes_infinity: bool = False
) -> Any:
    """Parse strict JSON (RFC 8259): the body, or its first `end` bytes.

    With `takes_infinity`, NaN, Infinity and -Infinity are numbers too, in up to 64 KB: reading
    them takes five times as long.

    Parsing holds Python's global lock to its end, in any thread. Its time is bounded by
    `check_json_size`, which the caller has called, and by the number of lists, objects and
    strings, which follows from the same `limit`. Raises InvalidArgument for more of them, and for
    malformed JSON.
    """
    size = len(body) if end is None else end
    most = max(_FEW, limit // _BYTES_PER_LIST)
    if size > most and body.count(b"[", 0, size) + body.count(b"{", 0, size) > most:
        raise InvalidArgument(
            f"The body has more than {most} lists and objects, the most for max_json_bytes. Send "
            "the values of a tensor as one flat list, or as binary."
        )
    most = max(_FEW, limit // _BYTES_PER_STRING)
    if size > 2 * most and body.count(b'"', 0, size) > 2 * most:
        raise InvalidArgument(
            f"The body has more than {most} strings, the most for max_json_bytes. Send them as "
            "binary."
        )
    try:
        return orjson.loads(memoryview(body)[:end])
    except orjson.JSONDecodeError as error:
        if takes_infinity and (body.find(b"NaN", 0, size) >= 0 or body.find(b"Inf", 0, size) >= 0):
            return _parse_infinity(body[:size])
        reason = "is empty" if not size else f"is not valid JSON: {error}"
        raise InvalidArgument(f"The body {reason}.") from None


def _parse_infinity(body: bytes) -> Any:
    """Parse JSON in which NaN, Infinity and -Infinity are numbers. Raises InvalidArgument."""
    if len(body) > _MOST_WITH_INFINITY:
        raise InvalidArgument(
            f"The body is not valid JSON: NaN and Infinity are read in up to {_MOST_WITH_INFINITY} "
            "bytes; send the tensor as binary, or null for NaN."
        )
    try:
        # All that `json` would accept beside them is refused by the stricter parser.
        orjson.loads(_NOT_FINITE.sub(lambda match: match[1] or b"0", body))
        return json.loads(body, parse_int=_integer)
    except ValueError as error:
        raise InvalidArgument(f"The body is not valid JSON: {error}.") from None


def _integer(text: str) -> int | float:
    """As orjson reads them: what 64 bits cannot hold is a float."""
    number = int(text)
    return number if -(1 << 63) <= number < 1 << 64 else float(text)


async def parse_value(body: bytes, limit: int) -> Any:
    """Parse JSON, off the event loop if it is long. Raises RequestTooLarge, InvalidArgument."""
    check_json_size(len(body), limit)
    if len(body) > INLINE_BYTES:
        return await off_loop(parse_json, body, limit, size=len(body))
    return parse_json(body, limit)


async def parse_object(body: bytes, limit: int) -> dict[str, Any]:
    """Parse a JSON object; an empty body counts as {}. Raises RequestTooLarge, InvalidArgument."""
    if not body:
        return {}
    parsed = await parse_value(body, limit)
    if not isinstance(parsed, dict):
        raise InvalidArgument("The body must be a JSON object.")
    return parsed


# Takes the object that its route needs, the request, and the path parameters as keywords.
Handler = Callable[..., Awaitable[HttpResponse]]
