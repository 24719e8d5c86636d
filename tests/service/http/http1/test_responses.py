from __future__ import annotations

import email.utils
import http.client
import io
import time
from typing import Any

import pytest

from service.http.http1.heads import Head
from service.http.http1.responses import encode, refusal

HEADERS = [("content-type", "text/plain"), ("x-a", "é")]


class Connection(io.BytesIO):
    """A socket for http.client."""

    def makefile(self, mode: str) -> Connection:
        return self


def parse(content: bytes, method: str = "GET") -> tuple[http.client.HTTPResponse, bytes]:
    socket: Any = Connection(content)
    response = http.client.HTTPResponse(socket, method=method)
    response.begin()
    return response, response.read()


def head(method: str = "GET", version: str = "1.1") -> Head:
    return Head(f"{method} / HTTP/{version}\r\nHost: a".encode())


def test_an_answer_has_its_length_and_date() -> None:
    response, body = parse(encode(head(), 200, HEADERS, b"abc", closes=False))
    assert (response.status, response.reason, body) == (200, "OK", b"abc")
    assert response.version == 11
    fields = dict(response.getheaders())
    assert fields.keys() == {"date", "content-type", "x-a", "content-length"}
    assert (fields["x-a"], fields["content-length"]) == ("é", "3")
    sent = email.utils.parsedate_to_datetime(fields["date"]).timestamp()
    assert abs(sent - time.time()) < 60


@pytest.mark.parametrize(
    ("version", "closes", "headers", "connection"),
    [
        ("1.1", False, [], []),
        ("1.1", True, [], ["close"]),
        ("1.1", True, [("connection", "close")], ["close"]),
        ("1.0", False, [], ["keep-alive"]),
        ("1.0", True, [], ["close"]),
    ],
)
def test_an_answer_says_whether_the_connection_ends(
    version: str, closes: bool, headers: list[tuple[str, str]], connection: list[str]
) -> None:
    content = encode(head(version=version), 200, headers, b"", closes=closes)
    response, _ = parse(content)
    assert (response.headers.get_all("connection") or []) == connection
    assert content.startswith(f"HTTP/{version} 200 OK\r\n".encode())


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_some_answers_have_no_body(method: str, status: int) -> None:
    content = encode(head(method), status, HEADERS, b"abc", closes=False)
    assert content.endswith(b"\r\n\r\n")
    assert b"content-length" not in content


def test_a_status_without_a_name_is_sent_without_one() -> None:
    assert encode(head(), 299, [], b"", closes=False).startswith(b"HTTP/1.1 299 \r\n")


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\nb", "€"])
def test_a_header_that_would_break_the_answer_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"line break|latin-1"):
        encode(head(), 200, [("a", value)], b"", closes=False)


def test_what_is_no_request_gets_a_sentence() -> None:
    response, body = parse(refusal(431, b"{}"))
    assert (response.status, body) == (431, b"{}")
    assert response.getheader("connection") == "close"
    assert response.getheader("content-type") == "application/json"
