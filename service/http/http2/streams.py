"""One request over HTTP/2, as the front sees it (`exchange`)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Collection
from typing import Protocol

from h2.exceptions import ProtocolError
from h2.utilities import HeaderValidationFlags, normalize_inbound_headers, validate_headers

from service.core.budget import Budget, Claim
from service.http.carrier import Client, Scope
from service.http.exchange import Ended
from service.http.http1.heads import CONTROL, MAX_HEADERS, NAMES, Headers, Malformed, split_target

_REQUEST = HeaderValidationFlags(
    is_client=False, is_trailer=False, is_response_header=False, is_push_promise=False
)
_PSEUDO = 4  # headers that HTTP/1 has in its request line and in Host
_PATH = re.compile("[!-~\x80-\xff]+")
_MOST_DIGITS = 19  # of a length: below 2**63


class Peer(Client, Protocol):
    """The connection, as its requests see it."""

    def read(self, stream: Stream) -> None:
        """Count what has arrived of a body as read, so that the client may send more."""

    def send_continue(self, stream: Stream) -> None:
        """Ask a client that waits for it to send its body."""

    def answer(
        self, stream: Stream, status: int, headers: list[tuple[str, str]], body: bytes
    ) -> None:
        """Send an answer."""


class RequestScope(Scope):
    """Of a header block; equal requests of a connection share it."""

    __slots__ = ()

    def __init__(self, block: Collection[tuple[bytes, bytes]], connection: Peer) -> None:
        """From a decoded header block. Raises Malformed.

        What h2 takes to be valid is not yet what HTTP/1 does, and `heads`.
        """
        super().__init__(connection)
        if len(block) > MAX_HEADERS + _PSEUDO:
            raise Malformed(f"The request has more than {MAX_HEADERS} headers.", 431)
        try:
            pairs = list(validate_headers(normalize_inbound_headers(block, _REQUEST), _REQUEST))
        except ProtocolError:
            raise Malformed("The headers of the request break the rules of HTTP/2.") from None
        pseudo: dict[str, str] = {}
        fields: list[tuple[str, str]] = []
        for raw_name, raw_value in pairs:
            if CONTROL.search(raw_value):
                raise Malformed("The headers of the request have a control character.")
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            if name[0] == ":":
                pseudo[name] = value
            else:
                fields.append((name, value))
        if not NAMES.fullmatch("".join([f"{name}\n" for name, _ in fields])):
            raise Malformed("A header of the request has a name that is not a token.")
        headers = Headers(fields)
        length = headers.get("content-length")
        if length is not None:
            if len(headers.get_all("content-length")) > 1:
                raise Malformed("The request has more than one content-length.")
            if len(length) > _MOST_DIGITS:
                raise Malformed("The Content-Length is not a number of bytes.")
        method, path = pseudo[":method"], pseudo.get(":path", "")
        if not NAMES.fullmatch(f"{method}\n"):
            raise Malformed("The method of the request is not a token.")
        if not _PATH.fullmatch(path) or not (path[0] == "/" or path == "*"):
            raise Malformed("The path of the request does not begin with a slash.")
        self.method = method
        self.path, self.query_string, _ = split_target(method, path)
        self.authority = pseudo.get(":authority", "")
        self.headers = headers
        self.http_version = "2"


class Stream:
    """One request, as `exchange.Exchange`. `whole` is its body if it came with the headers.

    The connection fills it: `received` is the part of the body that is not read yet, and
    `unread_window` what that has taken of the flow-control windows.
    """

    __slots__ = (
        "_budget",
        "_connection",
        "_header_bytes",
        "_waiter",
        "answer",
        "claim",
        "expects_continue",
        "id",
        "is_answered",
        "is_begun",
        "is_complete",
        "is_cut",
        "is_head",
        "moved_at",
        "opened_at",
        "received",
        "sent",
        "unread_window",
        "whole",
    )

    def __init__(self, stream_id: int, connection: Peer, now: float) -> None:
        self.id = stream_id
        self.is_head = False
        self.expects_continue = False  # the client waits until its body is asked for
        self.opened_at = now
        self.whole: bytes | None = None
        self.received = bytearray()
        self.unread_window = 0
        self.is_complete = False  # all of the body has arrived
        self.is_cut = False  # no more of it will
        self.is_answered = False
        self.is_begun = False  # a task has its headers
        self.answer = b""  # its body; `sent` bytes of it are sent, the last of them at `moved_at`
        self.sent = 0
        self.claim: Claim | None = None  # of an answer that waits
        self.moved_at = now
        self._connection = connection
        self._waiter: asyncio.Future[None] | None = None
        self._budget: Budget | None = None
        self._header_bytes = 0  # that are counted there

    async def __call__(self) -> bytes:
        """The whole body. Raises Ended."""
        if self.whole is not None:
            return self.whole
        pieces = [piece async for piece in self]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body in pieces. Raises Ended."""
        if self.whole is not None:
            yield self.whole
            return
        while True:
            if self.received:
                yield self._take()
            elif self.is_complete:
                return
            elif self.is_cut:
                raise Ended
            else:
                if self.expects_continue:
                    self.expects_continue = False
                    self._connection.send_continue(self)
                self._waiter = asyncio.get_running_loop().create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None

    def take_whole(self) -> None:
        """Take the body out of what has arrived, if that is all of it."""
        if self.is_complete:
            self.whole = self._take()

    def _take(self) -> bytes:
        piece = bytes(self.received)
        self.received = bytearray()
        self._connection.read(self)
        return piece

    def wake(self) -> None:
        """More of the body has come, or its end."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def count_headers(self, size: int, budget: Budget) -> bool:
        """Count `size` bytes of headers; False if there is no room for them."""
        size *= 2  # as bytes in h2, and as text
        if not budget.add_headers(size):
            return False
        self._budget, self._header_bytes = budget, size
        return True

    def give_back(self) -> None:
        """Stop counting its answer, and its headers unless a task still has them."""
        if self.claim is not None:
            self.claim.close()
            self.claim = None
        if not self.is_begun:
            self.give_back_headers()

    def give_back_headers(self) -> None:
        """Stop counting its headers."""
        if self._budget is not None:
            self._budget.drop_headers(self._header_bytes)
            self._budget = None

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """Send the answer."""
        self._connection.answer(self, status, headers, body)
