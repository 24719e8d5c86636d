"""HTTP, synchronous and asyncio, on httpx.

Strategy: a semaphore admits as many requests as there are connections. httpx has a queue for them
too, but compares every request in it with every connection whenever one begins or ends: 200 calls
at once took 10 s.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from email.utils import parsedate_to_datetime
from time import monotonic, time
from typing import TYPE_CHECKING, Any, TypeVar

from mnist_client.address import TLS, Address
from mnist_client.bodies import ACCEPT_ENCODING, Body
from mnist_client.calls import Call, HttpAnswer, HttpRequest, result_of
from mnist_client.errors import (
    ClientError,
    DeadlineExceeded,
    UnexpectedAnswer,
    Unreachable,
    of_status,
)

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
_LONGEST_MESSAGE = 2000  # characters of another server's error


class HttpTransport:
    """Sends calls over HTTP; any number of threads may."""

    def __init__(
        self,
        address: Address,
        tls: TLS | None,
        key: str | None,
        connections: int,
        max_answer_bytes: int,
    ):
        import httpx

        from mnist_client.deadlines import limit

        self._httpx = httpx
        self._address = address
        self._max_answer_bytes = max_answer_bytes
        self._client = httpx.Client(**_options(address, tls, key, connections))
        self._deadline = limit(self._client)
        self._turns = threading.BoundedSemaphore(connections)

    def send(self, call: Call[T], timeout: float) -> T:
        """Make one attempt of `timeout` seconds. Raises ClientError."""
        began = monotonic()
        if not self._turns.acquire(timeout=min(timeout, threading.TIMEOUT_MAX)):
            raise _late(self._address, timeout)
        self._deadline.end = began + timeout
        try:
            left = max(0.001, timeout - (monotonic() - began))
            with self._client.stream(**_arguments(call.http_request(left), left)) as response:
                body = Body(response.headers.get("content-encoding", ""), self._max_answer_bytes)
                for chunk in response.iter_raw():
                    body.add(chunk)
        except (self._httpx.RequestError, self._httpx.InvalidURL, OSError) as error:
            raise _error_of(error, self._address, timeout) from error
        finally:
            self._turns.release()
        return _result(call, response, body.content(), monotonic() - began, self._address)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()


class AsyncHttpTransport:
    """Sends calls over HTTP from one event loop."""

    def __init__(
        self,
        address: Address,
        tls: TLS | None,
        key: str | None,
        connections: int,
        max_answer_bytes: int,
    ):
        import httpx

        self._httpx = httpx
        self._address = address
        self._max_answer_bytes = max_answer_bytes
        self._client = httpx.AsyncClient(**_options(address, tls, key, connections))
        self._turns = asyncio.BoundedSemaphore(connections)

    async def send(self, call: Call[T], timeout: float) -> T:
        """Make one attempt of `timeout` seconds. Raises ClientError."""
        began = monotonic()
        try:
            async with asyncio.timeout(timeout), self._turns:
                left = max(0.001, timeout - (monotonic() - began))
                arguments = _arguments(call.http_request(left), left)
                async with self._client.stream(**arguments) as response:
                    encoding = response.headers.get("content-encoding", "")
                    body = Body(encoding, self._max_answer_bytes)
                    async for chunk in response.aiter_raw():
                        body.add(chunk)
        except TimeoutError as error:
            raise _late(self._address, timeout) from error
        except (self._httpx.RequestError, self._httpx.InvalidURL, OSError) as error:
            raise _error_of(error, self._address, timeout) from error
        return _result(call, response, body.content(), monotonic() - began, self._address)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()


def _options(
    address: Address, tls: TLS | None, key: str | None, connections: int
) -> dict[str, Any]:
    import httpx

    headers = {"user-agent": "mnist-client", "accept-encoding": ACCEPT_ENCODING}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    # Reading the authorities takes 20 ms. A context without any is safe: it trusts no server.
    context = (tls or TLS()).context() if address.is_secure else _no_authorities()
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return {"base_url": address.url, "headers": headers, "verify": context, "limits": limits}


def _no_authorities() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _arguments(request: HttpRequest, timeout: float) -> dict[str, Any]:
    arguments: dict[str, Any] = {"method": request.method, "url": request.path, "timeout": timeout}
    if request.method == "POST":
        arguments["content"] = request.content
        arguments["headers"] = {"content-type": request.media_type}
    return arguments


def _result(
    call: Call[T], response: httpx.Response, body: bytes, seconds: float, address: Address
) -> T:
    status = response.status_code
    if status in call.statuses:
        answer = HttpAnswer(status, response.headers, body, seconds)
        return result_of(call.from_http, answer, address.target)
    try:
        message = str(json.loads(body)["error"])[:_LONGEST_MESSAGE]
    except (ValueError, KeyError, TypeError, RecursionError):  # of a proxy
        message = f"The server at {address.target} answers with status {status}."
    retry_after = _seconds_of(response.headers.get("retry-after", ""))
    raise of_status(status, message, retry_after, response.headers.get("x-request-id", ""))


def _seconds_of(retry_after: str) -> float | None:
    """The header Retry-After in seconds from now (RFC 9110, 10.2.3), None without a valid one."""
    if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 10:
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time())
    except (ValueError, OverflowError):
        return None


def _late(address: Address, timeout: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"No answer from {address.target} within {timeout:.3g} s.")


def _error_of(error: Exception, address: Address, timeout: float) -> ClientError:
    """The client's error for one of httpx; an attempt has all the time that is left."""
    import httpx

    if isinstance(error, httpx.TimeoutException):
        return _late(address, timeout)
    # httpx lets errors of TLS through that come after the handshake.
    if not isinstance(
        error, (httpx.TransportError, OSError)
    ):  # such as an encoding that is damaged
        return UnexpectedAnswer(f"The answer from {address.target} cannot be read ({error}).")
    reason = str(error) or type(error).__name__
    unreachable = Unreachable(f"No HTTP answer from {address.target} ({reason}).")
    cause: BaseException | None = error
    while cause is not None:
        # A wrong certificate stays wrong; a connection that ends in the handshake may not.
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
            unreachable.retryable = False
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, (httpx.UnsupportedProtocol, httpx.LocalProtocolError)):
        unreachable.retryable = False
    return unreachable
