"""The head of an HTTP/1 request: its request line and headers, and what they say of its body.

Strict where a proxy before the server might read the same bytes in another way (request
smuggling): a head that is not exactly by the grammar is refused, and so is one that says more than
one thing about its body, or about its host.

Clients repeat the same few heads, so a head is parsed once and then looked up by its bytes.

Sources: RFC 9110 (HTTP), 5 and 7; RFC 9112 (HTTP/1.1), 2 to 7 and 11.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

# Bytes of a head, with the empty line that ends it, and how many headers it may have.
MAX_HEAD = 64 * 1024
MAX_HEADERS = 100
# The size of a body that is chunked; the chunks say where it ends.
CHUNKED = -1
_NAME = "[!#$%&'*+\\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rf"({_NAME}) ([!-~\x80-\xff]+) HTTP/1\.([01])")
NAMES = re.compile(rf"(?:{_NAME}\n)*")
# Beside CR and LF, which are counted, and the tab, which is allowed.
CONTROL = re.compile(rb"[\0-\x08\x0b\x0c\x0e-\x1f\x7f]")
_ABSOLUTE = re.compile(r"https?://([^/?]+)(.*)", re.IGNORECASE)
# What the first bytes of a request line can be, as far as they have come.
_BEGINS = re.compile(
    rf"{_NAME}(?: (?:[!-~\x80-\xff]+(?: [HTP/1.0]{{0,8}}\r?)?)?)?".encode("latin-1")
)
_MOST_DIGITS = 19  # of a length: below 2**63
# Heads that a worker remembers, and the bytes of the longest.
_MOST_KNOWN, MAX_KNOWN = 256, 1024


class Malformed(Exception):
    """The bytes are not a request by RFC 9112, or exceed a limit; `status` is its answer."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.status = status


class Headers(dict[str, str]):
    """The first value of each header, by its lower-case name; `get_all` has the others too."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        super().__init__(reversed(pairs))
        self._pairs = pairs

    def get_all(self, name: str) -> list[str]:
        """All values of a header, in order."""
        if name not in self:
            return []
        return [value for each, value in self._pairs if each == name]


class Head:
    """A request without its body. It is shared by equal requests: nothing may change it."""

    __slots__ = (
        "authority",
        "expects_continue",
        "headers",
        "http_version",
        "keeps_alive",
        "method",
        "path",
        "query_string",
        "size",
    )

    def __init__(self, content: bytes) -> None:
        """Parse a head, without the empty line that ends it. Raises Malformed."""
        lines = content.decode("latin-1").split("\r\n")
        if len(lines) > MAX_HEADERS + 1:
            raise Malformed(f"The request has more than {MAX_HEADERS} headers.", 431)
        breaks = len(lines) - 1
        if (
            CONTROL.search(content)
            or content.count(b"\r") != breaks
            or content.count(b"\n") != breaks
        ):
            raise Malformed("The headers of the request have a control character.")
        line = _REQUEST_LINE.fullmatch(lines[0])
        if line is None:
            raise Malformed("The first line of the request is not METHOD PATH HTTP/1.1.")
        self.method: Final = line[1]
        self.http_version: Final = f"1.{line[3]}"
        self.path, self.query_string, self.authority = split_target(line[1], line[2])
        pairs = []
        for field in lines[1:]:
            name, _, value = field.partition(":")
            pairs.append((name.lower(), value.strip(" \t")))
        names = "".join([f"{name}\n" for name, _ in pairs])
        if not NAMES.fullmatch(names) or any(":" not in field for field in lines[1:]):
            raise Malformed("A header of the request is not of the form NAME: VALUE.")
        headers = Headers(pairs)
        self.headers: Final = headers
        if len(pairs) != len(headers):
            for name in ("host", "content-length"):
                if len(headers.get_all(name)) > 1:
                    raise Malformed(f"The request has more than one {name}.")
        if self.authority and self.authority.lower() != headers.get("host", self.authority).lower():
            raise Malformed("The first line of the request and its Host name two hosts.")
        is_current = self.http_version == "1.1"
        if is_current and "host" not in headers:
            raise Malformed("The request has no Host, which HTTP/1.1 requires.")
        self.size: Final = _size(headers, is_current)
        options = ",".join(headers.get_all("connection")).lower()
        tokens = {token.strip() for token in options.split(",")}
        self.keeps_alive: Final = "close" not in tokens and (is_current or "keep-alive" in tokens)
        self.expects_continue: Final = (
            is_current and headers.get("expect", "").lower() == "100-continue"
        )


class Heads:
    """The heads that a worker has seen lately, by their bytes."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def parse(self, content: bytes) -> Head:
        """The head that these bytes are, without the empty line. Raises Malformed."""
        head = self._known.get(content)
        if head is None:
            head = Head(content)
            if len(content) <= MAX_KNOWN:
                if len(self._known) >= _MOST_KNOWN:
                    self._known.clear()
                self._known[content] = head
        return head


def check_begin(content: bytes | bytearray) -> None:
    """Raise Malformed for bytes that cannot be the begin of a head, whatever follows."""
    line, found, _ = content.partition(b"\r\n")
    if found and not _REQUEST_LINE.fullmatch(line.decode("latin-1")):
        raise Malformed("The first line of the request is not METHOD PATH HTTP/1.1.")
    if not found and line and not _BEGINS.fullmatch(line):
        raise Malformed("This is not an HTTP/1 request.")
    if content.count(b"\n") != content.count(b"\r\n"):
        raise Malformed("A line of the headers does not end with CR LF.")
    if len(content) >= MAX_HEAD:
        raise Malformed(f"The headers of the request exceed {MAX_HEAD} bytes.", 431)


def split_target(method: str, target: str) -> tuple[str, str, str]:
    """The path without escapes, the query, and the host of an absolute target (RFC 9112, 3.2)."""
    authority = ""
    if target[0] != "/" and not (target == "*" and method == "OPTIONS"):
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            raise Malformed("The path of the request does not begin with a slash.")
        authority, target = absolute[1], absolute[2]
        if not target.startswith("/"):
            target = f"/{target}"
    path, _, query = target.partition("?")
    if not path.isascii():
        path = path.encode("latin-1").decode("utf-8", "replace")
    if "%" in path:
        path = unquote(path)
    return path, query, authority


def _size(headers: Headers, is_current: bool) -> int:
    """Bytes of the body, or CHUNKED (RFC 9112, 6.3)."""
    length = headers.get("content-length")
    coding = headers.get("transfer-encoding")
    if coding is not None:
        if length is not None:
            raise Malformed("The request has both Content-Length and Transfer-Encoding.")
        if not is_current or ",".join(headers.get_all("transfer-encoding")).lower() != "chunked":
            raise Malformed("The Transfer-Encoding of a request can only be chunked.")
        return CHUNKED
    if length is None:
        return 0
    if not (length.isascii() and length.isdigit() and len(length) <= _MOST_DIGITS):
        raise Malformed("The Content-Length is not a number of bytes.")
    return int(length)
