"""The health port: answers probes and scrapes whatever happens on the other ports.

Strategy: it shares nothing with them that clients can use up. It has a listening socket of its own
and file descriptors in reserve. Its connections are few; the oldest makes room for a newcomer. It
runs on the event loop of its worker, so an answer also shows that the loop runs. A connection gets
one answer and is closed. Of the request, the request line counts, and for /metrics what the caller
shows to the gate; other headers and bodies change nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import socket
from http import HTTPStatus

from service.access.gate import Gate
from service.access.origins import SAFE_HEADERS, Origins
from service.core.errors import (
    InvalidArgument,
    MethodNotAllowed,
    NoSuchEndpoint,
    ServiceError,
    excerpt,
)
from service.http.answering import HttpApp
from service.http.message import HttpRequest, HttpResponse, json_response

PATHS = ("/v2/health/live", "/v2/health/ready", "/metrics")

_BACKLOG = 64
_MAX_CONNECTIONS = 16
_MAX_REQUEST = 8192  # bytes of the request line and the headers
_REQUEST_S = 5.0  # for these bytes
_ANSWER_S = 30.0  # to answer and to send
_LINGER_S = 1.0  # for the client to close after the answer
# One for the connection, the others for the files that /metrics reads.
_RESERVED_DESCRIPTORS = 8
_LOOK_S = 0.01  # between two looks whether another port is open
_PAUSE_S = 0.1  # before accepting is tried again without a free descriptor
# RFC 9112, 2.2 and 3: a lone LF may end a line.
_END = re.compile(rb"\r?\n\r?\n")
_LINE = re.compile(rb"\r?\n")
_REQUEST_LINE = re.compile(rb"([!-~]+) ([!-~]+) HTTP/1\.[01]\r?\n")


class HealthPort:
    """Answers GET and HEAD of `PATHS` on a port that all workers share, as `app` does."""

    def __init__(
        self,
        app: HttpApp,
        host: str,
        port: int,
        gate: Gate | None = None,
        origins: Origins | None = None,
    ) -> None:
        self._app = app
        self._gate = gate
        self._origins = origins or Origins()
        self._address = (host, port)
        self._loop = asyncio.get_running_loop()
        self._reserve: list[int] = []
        # The tasks of all connections, the oldest first; and those whose request has not come.
        self._open: dict[asyncio.Task[None], None] = {}
        self._waiting: dict[asyncio.Task[None], None] = {}

    def start(
        self, after: tuple[str, int] | None = None, listener: socket.socket | None = None
    ) -> None:
        """Listen: on a socket that is bound, or else on the port. Raises OSError if it cannot.

        Connections wait until the port `after` (host, port) accepts some: a probe that is told that
        the server is ready must find that port open.
        """
        if listener is None:
            found = socket.getaddrinfo(*self._address, type=socket.SOCK_STREAM)
            family, _, _, _, address = found[0]
            listener = socket.socket(family, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
        self._listener = listener
        listener.setblocking(False)
        listener.listen(_BACKLOG)
        self._opening = self._loop.create_task(self._open_after(after)) if after else None
        if after is None:
            self._accept_again()

    async def _open_after(self, address: tuple[str, int]) -> None:
        while self._listener.fileno() >= 0:
            try:
                _, writer = await asyncio.open_connection(*address)
            except OSError:
                await asyncio.sleep(_LOOK_S)
            else:
                writer.close()
                self._accept_again()
                return

    def stop(self) -> None:
        """Close the port; connections that are open get their answers."""
        self._loop.remove_reader(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        """Accept one connection per turn of the event loop: a flood leaves turns for others."""
        try:
            connection = self._next_connection()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:  # no descriptor, and none in reserve: the connection waits in the backlog
            self._loop.remove_reader(self._listener)
            self._loop.call_later(_PAUSE_S, self._accept_again)
            return
        connection.setblocking(False)
        if len(self._open) >= _MAX_CONNECTIONS:
            oldest = next(iter(self._waiting or self._open))
            oldest.cancel()
            self._forget(oldest)
        task = self._loop.create_task(self._serve(connection))
        self._open[task] = self._waiting[task] = None

        # Not by the task itself: one that is cancelled before its first step runs no code.
        def end(task: asyncio.Task[None]) -> None:
            connection.close()
            self._forget(task)
            self._reserve_descriptors()

        task.add_done_callback(end)

    def _accept_again(self) -> None:
        if self._listener.fileno() >= 0:
            self._reserve_descriptors()
            self._loop.add_reader(self._listener, self._accept)

    def _next_connection(self) -> socket.socket:
        while True:
            try:
                return self._listener.accept()[0]
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._reserve:
                    raise
                # The other ports may take it first: they want descriptors too.
                os.close(self._reserve.pop())

    def _reserve_descriptors(self) -> None:
        with contextlib.suppress(OSError):
            while len(self._reserve) < _RESERVED_DESCRIPTORS:
                self._reserve.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._open.pop(task, None)
        self._waiting.pop(task, None)

    async def _serve(self, connection: socket.socket) -> None:
        """Read a request and answer it."""
        task = asyncio.current_task()
        assert task is not None
        is_short = len(self._reserve) < _RESERVED_DESCRIPTORS
        try:
            async with asyncio.timeout(_REQUEST_S):
                request = await self._read(connection)
            self._waiting.pop(task, None)
            if request:
                async with asyncio.timeout(_ANSWER_S):
                    if is_short:
                        while self._reserve:
                            os.close(self._reserve.pop())
                    content = await self._answer(request)
                    await self._loop.sock_sendall(connection, content)
                async with asyncio.timeout(_LINGER_S):
                    # Closing a socket that has unread bytes would reset the connection, and the
                    # client could lose the answer.
                    connection.shutdown(socket.SHUT_WR)
                    while await self._loop.sock_recv(connection, _MAX_REQUEST):
                        pass
        except (TimeoutError, OSError):
            pass  # the client is slow, or gone

    async def _read(self, connection: socket.socket) -> bytes:
        """What the client sends until the end of the headers or `_MAX_REQUEST`; empty if less."""
        request = b""
        while not _END.search(request) and len(request) <= _MAX_REQUEST:
            chunk = await self._loop.sock_recv(connection, _MAX_REQUEST)
            if not chunk:
                return b""
            request += chunk
        return request

    async def _answer(self, request: bytes) -> bytes:
        line = _REQUEST_LINE.match(request)
        method, target = (part.decode() for part in line.groups()) if line else ("", "")
        path = target.partition("?")[0]
        try:
            if not line or len(request) > _MAX_REQUEST:
                raise InvalidArgument(f"This is no HTTP/1 request of up to {_MAX_REQUEST} bytes.")
            self._check_page(request)
            if path not in PATHS:
                raise NoSuchEndpoint(f"Nothing is at {excerpt(path)}; GET {', '.join(PATHS)}.")
            if method not in ("GET", "HEAD"):
                raise MethodNotAllowed(f"{path} does not take {excerpt(method)}.")
            get = HttpRequest("GET", path, _no_header, b"")
            match = self._app.find(get)
            assert match is not None
            if self._gate is not None and (need := match.route.scope) is not None:
                try:
                    shown = _values(request, b"authorization"), _values(request, b"x-api-key")
                    self._gate.admit(need, *shown, "", is_limited=False)
                except ServiceError as refusal:
                    response = await self._app.refuse(get, refusal, match.route)
                    return _encode(response, with_body=method != "HEAD")
            answer = await self._app.answer(get, match)
            assert answer is not None
            response = answer
        except ServiceError as error:
            response = json_response({"error": error.message}, error.http_status)
            response.headers.extend(SAFE_HEADERS)
            if isinstance(error, MethodNotAllowed):
                response.headers.append(("allow", "GET, HEAD"))
        return _encode(response, with_body=method != "HEAD")

    def _check_page(self, request: bytes) -> None:
        """Raise Forbidden for the request of a web page of another server."""

        def header(name: str) -> str | None:
            values = _values(request, name.encode())
            return values[0] if values else None

        self._origins.check(header("host"), "http", header, is_proxied=False)


def _values(request: bytes, name: bytes) -> list[str]:
    """The values of a header, by its lower-case name."""
    lines = _LINE.split(_END.split(request, maxsplit=1)[0])[1:]
    fields = [line.partition(b":") for line in lines]
    return [value.strip().decode("latin-1") for key, _, value in fields if key.lower() == name]


def _no_header(name: str) -> None:
    return None


def _encode(response: HttpResponse, with_body: bool) -> bytes:
    headers = [
        *response.headers,
        ("content-length", str(len(response.body))),
        ("connection", "close"),
    ]
    lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers]
    head = "\r\n".join(lines) + "\r\n\r\n"
    return head.encode("latin-1") + (response.body if with_body else b"")
