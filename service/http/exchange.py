"""What carries HTTP, as the front sees it: RSGI's scope and protocol, which Granian has as well.

The server's own HTTP/1 and HTTP/2 are carriers too. Both read a body only as the front asks for it,
but for a little that is bounded; the rest stays with the client.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, ItemsView
from typing import Any, Protocol


class Ended(Exception):
    """The rest of a body will not arrive: the client has closed its side, or broken the rules."""


class RequestHeaders(Protocol):
    """Headers by their lower-case names."""

    def get(self, name: str, default: Any = None, /) -> Any:
        """The first value."""

    def get_all(self, name: str) -> list[str]:
        """All values, in order."""

    def items(self) -> ItemsView[str, str]:
        """Names and values."""

    def __contains__(self, name: object, /) -> bool: ...


class Scope(Protocol):
    """A request without its body."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str:
        """Without the query, and without escapes."""

    @property
    def query_string(self) -> str: ...
    @property
    def headers(self) -> RequestHeaders: ...
    @property
    def authority(self) -> str | None:
        """The host that the request line names, if it does."""

    @property
    def http_version(self) -> str:
        """1.0, 1.1 or 2."""

    @property
    def scheme(self) -> str: ...
    @property
    def client(self) -> str:
        """ADDRESS:PORT, as `server`."""

    @property
    def server(self) -> str: ...


class Exchange(Protocol):
    """One request's body, and the way back."""

    async def __call__(self) -> bytes:
        """The whole body. Raises Ended."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The body in pieces. Raises Ended."""

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes, /) -> None:
        """Send the answer, once. A client that is gone does not get it."""
