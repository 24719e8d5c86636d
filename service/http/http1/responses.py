"""HTTP/1 responses as bytes (RFC 9112, 4 and 6)."""

from __future__ import annotations

from collections.abc import Iterable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from time import time

from service.access.origins import SAFE_HEADERS
from service.http.http1.heads import Head

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_WITHOUT_BODY = (204, 304)
_SAFE = "".join([f"{name}: {value}\r\n" for name, value in SAFE_HEADERS])
# Those of nearly every answer.
_LINES = {(name, value): f"{name}: {value}\r\n" for name, value in SAFE_HEADERS}


def encode(
    head: Head, status: int, headers: Iterable[tuple[str, str]], body: bytes, *, closes: bool
) -> bytes:
    """The answer to a request; `closes` if the connection ends with it.

    Header values are latin-1; a line break in one would begin another header, so it is refused.
    Raises ValueError.
    """
    lines = [_begin(head.http_version, status, int(time()))]
    for pair in headers:
        line = _LINES.get(pair)
        lines.append(f"{pair[0]}: {pair[1]}\r\n" if line is None else line)
    has_body = status not in _WITHOUT_BODY and head.method != "HEAD"
    if has_body:
        lines.append(f"content-length: {len(body)}\r\n")
    if closes:
        if ("connection", "close") not in headers:
            lines.append("connection: close\r\n")
    elif head.http_version == "1.0":
        lines.append("connection: keep-alive\r\n")
    lines.append("\r\n")
    text = "".join(lines)
    # Each line ends once: the first one's date line is one more.
    if text.count("\n") != len(lines) + 1:
        raise ValueError("a header of the answer has a line break")
    content = text.encode("latin-1")
    return content + body if has_body else content


def refusal(status: int, body: bytes) -> bytes:
    """The answer to bytes that are not a request; the connection ends with it."""
    text = (
        f"{_begin('1.1', status, int(time()))}content-type: application/json\r\n{_SAFE}"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return text.encode("latin-1") + body


@lru_cache(32)
def _begin(version: str, status: int, second: int) -> str:
    """The status line and the date, which hundreds of answers have in common."""
    reason = HTTPStatus(status).phrase if status in _STATUSES else ""
    return f"HTTP/{version} {status} {reason}\r\ndate: {date(second)}\r\n"


@lru_cache(1)
def date(second: int) -> str:
    """A time since the epoch as the header `date` has it."""
    return formatdate(second, usegmt=True)


_STATUSES = frozenset(status.value for status in HTTPStatus)
