"""The HTTP front of a worker: an RSGI callable that reads a request and sends the answer.

RSGI (Granian's interface) hands over a request in far fewer steps than WSGI or ASGI;
docs/decisions/http-front.md says how much that saves. Requests that match no route go to Flask,
which says why.
"""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from granian.rsgi import HTTPProtocol, ProtocolClosed, ProtocolError, Scope

from service.core.callers import Callers
from service.core.errors import (
    InvalidArgument,
    NoSuchEndpoint,
    RequestTimeout,
    RequestTooLarge,
    ServiceError,
    Unimplemented,
    excerpt,
)
from service.http.answering import HttpApp
from service.http.message import HttpRequest, HttpResponse

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Any]

_FLASK_THREADS = 8


class HttpFront:
    """Answers every HTTP request of one worker, on its event loop.

    It exists before the loop does, because Granian asks for the callable first; `start` comes
    before the first request.
    """

    def __init__(
        self, *, max_request_bytes: int, body_timeout: float, fast_lane: bool, callers: Callers
    ) -> None:
        self._max_request_bytes = max_request_bytes
        self._body_timeout = body_timeout
        self._fast_lane = fast_lane
        self._callers = callers
        self._known_callers = callers.known
        self._flask_threads = ThreadPoolExecutor(_FLASK_THREADS, "flask")
        # The tasks whose bodies are arriving: since when, and which of them are too late.
        self._receiving: dict[asyncio.Task[None], float] = {}
        self._late: set[asyncio.Task[None]] = set()

    def start(self, app: HttpApp, wsgi_app: WsgiApp) -> None:
        """Answer requests with `app` from now on; `wsgi_app` answers those that match no route."""
        self._app = app
        self._wsgi_app = wsgi_app
        self._loop = asyncio.get_running_loop()
        self._sweep()

    async def __call__(self, scope: Scope, protocol: HTTPProtocol) -> None:
        """Answer one request (RSGI's callable)."""
        peer = scope.client.rpartition(":")[0]
        caller = self._known_callers.get(peer)
        if caller is None:
            caller = self._callers.of(peer, scope.headers.get_all("x-forwarded-for"))  # type: ignore[attr-defined]
        try:
            body = await self._body(scope, protocol)
        except ServiceError as error:
            request = HttpRequest(scope.method, scope.path, scope.headers.get, b"", caller=caller)
            response = await self._app.refuse(request, error)
            # The rest of the body is still arriving, so an HTTP/1 connection cannot be used again.
            # HTTP/2 ends the stream alone, and forbids the header (RFC 9113, 8.2.2).
            if scope.http_version.startswith("1"):
                response.headers.append(("connection", "close"))
        else:
            # By position: keywords take 0.4 us more, for every request.
            request = HttpRequest(
                scope.method, scope.path, scope.headers.get, body, scope.query_string, caller
            )
            answer = await self._app.answer(request) if self._fast_lane else None
            if answer is None and (refusal := _unknown_to_flask(scope)):
                answer = await self._app.refuse(request, refusal)
            if answer is None:
                answer = await self._loop.run_in_executor(
                    self._flask_threads, self._through_flask, scope, body, caller
                )
            response = answer
        protocol.response_bytes(response.status, response.headers, response.body)

    async def _body(self, scope: Scope, protocol: HTTPProtocol) -> bytes:
        """The whole body.

        Raises RequestTooLarge before reading past the limit, RequestTimeout if the body is late,
        InvalidArgument if it is cut short.
        """
        length = scope.headers.get("content-length")
        if length is not None and int(length) > self._max_request_bytes:
            raise RequestTooLarge.of("body", self._max_request_bytes)
        task = asyncio.current_task()
        assert task is not None
        self._receiving[task] = self._loop.time()
        try:
            if length is not None or scope.method in ("GET", "HEAD"):
                return await protocol()
            body = bytearray()  # chunked: the length is unknown until the end
            empty_chunks = 0
            async for chunk in protocol:
                body += chunk
                empty_chunks += not chunk
                if len(body) > self._max_request_bytes:
                    raise RequestTooLarge.of("body", self._max_request_bytes)
            # Granian ends every body with an empty chunk, and reports an error as another one. So
            # does HTTP/2 for an empty DATA frame, and HTTP/1 for trailers, if a client has any.
            is_http_1 = scope.http_version.startswith("1")
            if empty_chunks > 1 and is_http_1 and "trailer" not in scope.headers:
                raise _cut_short()
            return bytes(body)
        except (ProtocolError, ProtocolClosed):
            # The client closed its side early; it may still read an answer.
            raise _cut_short() from None
        except asyncio.CancelledError:
            if task not in self._late:
                raise
            task.uncancel()
            self._late.discard(task)
            raise RequestTimeout.of("body", self._body_timeout) from None
        finally:
            del self._receiving[task]

    def _sweep(self) -> None:
        """Cancel the tasks whose bodies have been arriving for too long.

        One timer for all of them: one per request would cost a tenth of a request's time.
        """
        self._loop.call_later(self._body_timeout / 8, self._sweep)
        oldest = self._loop.time() - self._body_timeout
        for task, began in self._receiving.items():
            if began < oldest and task not in self._late:
                self._late.add(task)
                task.cancel()

    def _through_flask(self, scope: Scope, body: bytes, caller: str) -> HttpResponse:
        """Call Flask through WSGI (PEP 3333). Runs in a thread: Flask waits for the loop."""
        status = 500
        headers: list[tuple[str, str]] = []

        def start_response(line: str, pairs: list[tuple[str, str]], exc_info: Any = None) -> None:
            nonlocal status
            status = int(line.split(" ", 1)[0])
            # Granian counts the body itself, as it does without Flask.
            headers[:] = [(n.lower(), v) for n, v in pairs if n.lower() != "content-length"]

        chunks = self._wsgi_app(_environ(scope, body, caller), start_response)
        try:
            content = b"".join(chunks)
        finally:
            getattr(chunks, "close", lambda: None)()
        return HttpResponse(status, headers, content)


def _unknown_to_flask(scope: Scope) -> ServiceError | None:
    """The error of a request that Flask would read as another one; None for most.

    Werkzeug takes `post` for POST and `//v2` for /v2, so a proxy's rules for the latter would not
    see the former. RFC 9110, 9.1: methods are case-sensitive.
    """
    if scope.path.startswith("//"):
        return NoSuchEndpoint.of(scope.path)
    if scope.method != scope.method.upper():
        return Unimplemented(
            f"There is no method {excerpt(scope.method)}; methods are in upper case."
        )
    return None


def _cut_short() -> InvalidArgument:
    return InvalidArgument("The body is damaged or cut short: its end did not arrive.")


def _environ(scope: Scope, body: bytes, caller: str) -> dict[str, Any]:
    host, _, port = scope.server.rpartition(":")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope.method,
        "SCRIPT_NAME": "",
        # PEP 3333: bytes of the path, carried as latin-1. Granian has undone its %-escapes.
        "PATH_INFO": scope.path.encode().decode("latin-1"),
        "QUERY_STRING": scope.query_string,
        "SERVER_NAME": host,
        "SERVER_PORT": port,
        "SERVER_PROTOCOL": f"HTTP/{scope.http_version}",
        "REMOTE_ADDR": scope.client.rpartition(":")[0],
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.scheme,
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "mnist.caller": caller,
    }
    for name, value in scope.headers.items():
        key = name.upper().replace("-", "_")
        if key == "CONTENT_TYPE":
            environ[key] = value
        elif key != "CONTENT_LENGTH":
            environ[f"HTTP_{key}"] = value
    if scope.authority:
        environ.setdefault("HTTP_HOST", scope.authority)
    return environ
