"""The HTTP front of a worker: a callable that reads a request and sends the answer.

The server's own HTTP/1 and HTTP/2 call it (`http1`, `http2`), or Granian by its interface RSGI. All
have that interface (`exchange`): it hands over a request in far fewer steps than WSGI or ASGI.
docs/decisions/http-front.md says how much that saves. Requests that match no route go to Flask,
which says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from granian.rsgi import ProtocolClosed, ProtocolError

from service.access.gate import Gate, Identity, Need
from service.access.origins import ANY_ORIGIN, Header, Origins
from service.core.budget import Budget, Claim
from service.core.callers import Callers
from service.core.errors import (
    DeadlineExceeded,
    Forbidden,
    InvalidArgument,
    Overloaded,
    RequestTimeout,
    RequestTooLarge,
    ServiceError,
    TooManyRequests,
)
from service.core.trace import Trace
from service.http.answering import HttpApp, Match
from service.http.digits import timeout_of
from service.http.exchange import Ended, Exchange, RequestHeaders, Scope
from service.http.message import HttpRequest, HttpResponse
from service.observe.traces import Traces

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Any]

_FLASK_THREADS = 8
# A body up to this size is read whole, and counted when it has arrived.
_WHOLE_BYTES = 16 * 1024
# The largest body that is read although its request is refused.
_DRAINED_BYTES = 64 * 1024


class HttpFront:
    """Answers every HTTP request of one worker, on its event loop.

    It exists before the loop does, because Granian asks for the callable first; `start` comes
    before the first request.
    """

    def __init__(
        self,
        *,
        max_request_bytes: int,
        body_timeout: float,
        fast_lane: bool,
        callers: Callers,
        origins: Origins | None = None,
        notes_clients: bool = False,
        reads_ahead: bool = False,
    ) -> None:
        """With `reads_ahead`, requests are those of the server's own HTTP, which have `whole`."""
        self._reads_ahead = reads_ahead
        self._max_request_bytes = max_request_bytes
        self._at_once = min(_WHOLE_BYTES, max_request_bytes)
        self._body_timeout = body_timeout
        self._fast_lane = fast_lane
        self._callers = callers
        self._known_callers = callers.known
        self._origins = origins or Origins()
        self._known_hosts = self._origins.known_hosts
        # Set before the worker stops: clients of HTTP/1 then close their connections after the next
        # answer, and none sends a request while its connection is being closed.
        self.is_leaving = False
        # The client (ADDRESS:PORT) of each request that is not answered.
        self.in_flight: dict[Exchange, str] = {}
        # The clients of all requests so far, if `notes_clients`; `http.connections` prunes it.
        self.heard: set[str] | None = set() if notes_clients else None
        self._flask_threads = ThreadPoolExecutor(_FLASK_THREADS, "flask")
        # When the body of each task began to arrive, and for which request. The errors of tasks
        # that are cancelled because their bodies take too long.
        self._receiving: dict[asyncio.Task[None], tuple[float, Exchange]] = {}
        self._late: dict[asyncio.Task[None], ServiceError] = {}

    def start(
        self, app: HttpApp, wsgi_app: WsgiApp, budget: Budget, gate: Gate | None = None
    ) -> None:
        """Answer requests with `app` from now on; `wsgi_app` answers those that match no route."""
        self._gate = gate
        self._budget = budget
        self._app = app
        self._traces = app.traces
        self._wsgi_app = wsgi_app
        self._loop = asyncio.get_running_loop()
        self._sweep()

    async def __call__(  # noqa: PLR0912, PLR0915 - one story; helpers would cost each request time
        self, scope: Scope, protocol: Exchange
    ) -> None:
        """Answer one request (RSGI's callable)."""
        client = self.in_flight[protocol] = scope.client
        if self.heard is not None:
            self.heard.add(client)
        try:
            headers = scope.headers
            peer = client.rpartition(":")[0]
            caller = self._known_callers.get(peer)
            if caller is None:
                caller = self._callers.of(peer, headers.get_all("x-forwarded-for"))
            cors = self._origins.headers
            # HTTP/2 has the name in its request line, in place of Host.
            host = headers.get("host") or scope.authority
            if host not in self._known_hosts or headers.get("origin") is not None:
                page = await self._check_page(scope, protocol, host, peer, caller)
                if page is None:
                    return
                cors = page
            identity, match = None, None
            if self._gate is not None:
                admitted = await self._admit(self._gate, scope, protocol, peer, caller, cors)
                if admitted is None:
                    return
                identity, match = admitted
                caller = identity.caller
            if self._app.overloaded and (refusal := self._early_refusal(scope, caller)):
                refusal.headers.extend(cors)
                await self._answer_unread(scope, protocol, refusal)
                return
            trace = None if self._traces is None else _begin(self._traces, headers)
            query = scope.query_string
            is_timed = query and "timeout" in query and self._app.is_timed(scope.method, scope.path)
            timeout = timeout_of(query) if is_timed else 0.0
            arrived = self._loop.time() if timeout else 0.0
            # Granian's protocol does not have it.
            whole: bytes | None = protocol.whole if self._reads_ahead else None  # type: ignore[attr-defined]
            claim: Claim | None = None
            try:
                if whole is not None and len(whole) <= self._at_once:
                    body = whole
                    self._budget.count(len(body), "http")
                else:
                    body, claim = await self._body(scope, protocol, headers, timeout)
            except ServiceError as error:
                response = await self._refuse(scope, error, caller, trace=trace)
            else:
                try:
                    # By position: keywords take 0.4 us more, for every request.
                    request = HttpRequest(
                        scope.method,
                        scope.path,
                        headers.get,
                        body,
                        query,
                        caller,
                        trace,
                        arrived,
                    )
                    answer = await self._app.answer(request, match) if self._fast_lane else None
                    if answer is None:
                        answer = await self._loop.run_in_executor(
                            self._flask_threads, self._through_flask, scope, request, identity
                        )
                    response = answer
                finally:
                    self._give_back(body, claim)
            if cors or self.is_leaving:
                self._add_headers(scope, response, cors)
            protocol.response_bytes(response.status, response.headers, response.body)
        finally:
            del self.in_flight[protocol]

    def refuse_early(self, scope: Scope, protocol: Exchange, body: bytes | None) -> bool:
        """Answer a request whose model is overloaded, without a task for it; or return False.

        Only for requests that need no other check, and whose body has arrived.
        """
        if not self._app.overloaded or body is None or self._gate is not None:
            return False
        headers = scope.headers
        caller = self._known_callers.get(scope.client.rpartition(":")[0])
        if caller is None or headers.get("host") not in self._known_hosts or "origin" in headers:
            return False
        refusal = self._early_refusal(scope, caller)
        if refusal is None:
            return False
        refusal.headers.extend(self._origins.headers)
        self._add_headers(scope, refusal)
        protocol.response_bytes(refusal.status, refusal.headers, refusal.body)
        return True

    async def _check_page(
        self, scope: Scope, protocol: Exchange, host: str | None, peer: str, caller: str
    ) -> tuple[Header, ...] | None:
        """The headers of CORS for the answer; None if the request is answered without its body."""
        header = scope.headers.get
        request = HttpRequest(scope.method, scope.path, header, b"", scope.query_string, caller)
        is_proxied = self._callers.is_trusted(peer)
        try:
            cors = self._origins.check(host, scope.scheme, header, is_proxied)
            if ANY_ORIGIN in cors and request.method == "POST":
                match = self._app.find(request)
                # Flask finds more routes: those with a slash at the end.
                if match is None or match.route.scope == "admin":
                    raise Forbidden(
                        "A web page may make changes only if allowed_origins has its origin by "
                        "name, not if it has *."
                    )
        except Forbidden as error:
            await self._refuse_caller(scope, protocol, error, caller)
            return None
        if request.method == "OPTIONS" and header("access-control-request-method"):
            answer = await self._app.preflight(request)
            answer.headers.extend(cors)
            await self._answer_unread(scope, protocol, answer)
            return None
        return cors

    async def _admit(
        self,
        gate: Gate,
        scope: Scope,
        protocol: Exchange,
        peer: str,
        caller: str,
        cors: tuple[Header, ...],
    ) -> tuple[Identity, Match | None] | None:
        """Who makes a request, and its route; None if it is refused without its body."""
        method, path = scope.method, scope.path
        headers = scope.headers
        match = self._app.match(method, path)
        need: Need = "any"
        if match is not None:
            need = match.route.scope
        elif method == "HEAD" and (get := self._app.match("GET", path)):
            need = get.route.scope
        certificate = ""
        # Granian does not say which certificate a client of its own TLS has.
        own = getattr(scope, "certificate", "")
        if own or self._callers.forwards_certificates:
            forwarded = headers.get_all("x-forwarded-client-cert")
            certificate = self._callers.certificate_of(peer, own, forwarded)
        try:
            identity = gate.admit(
                need,
                headers.get_all("authorization"),
                headers.get_all("x-api-key"),
                caller,
                certificate,
            )
        except TooManyRequests as error:
            request = HttpRequest(method, path, headers.get, b"", caller=caller)
            response = await self._app.refuse(request, error)
            response.headers.extend(cors)
            await self._answer_unread(scope, protocol, response)
            return None
        except ServiceError as error:
            await self._refuse_caller(scope, protocol, error, caller, cors)
            return None
        return identity, match

    async def _refuse_caller(
        self,
        scope: Scope,
        protocol: Exchange,
        error: ServiceError,
        caller: str,
        cors: tuple[Header, ...] = (),
    ) -> None:
        """Refuse a request that its sender may not make. Nothing of its body is read."""
        headers = scope.headers
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        response = await self._refuse(scope, error, caller, has_body)
        self._add_headers(scope, response, cors)
        protocol.response_bytes(response.status, response.headers, response.body)

    def _add_headers(
        self, scope: Scope, response: HttpResponse, cors: tuple[Header, ...] = ()
    ) -> None:
        response.headers.extend(cors)
        if self.is_leaving:
            _end_connection(scope, response)

    async def _answer_unread(
        self, scope: Scope, protocol: Exchange, response: HttpResponse
    ) -> None:
        """Answer a request without its body.

        A small body is read, so that the connection can be used again: hyper closes it unless all
        of the body has arrived. A caller that sends too much would otherwise connect again for
        each request. It has as long as for any other body.
        """
        headers = scope.headers
        if int(headers.get("content-length", _DRAINED_BYTES + 1)) <= _DRAINED_BYTES:
            with contextlib.suppress(ServiceError):
                self._give_back(*await self._body(scope, protocol, headers))
        self._add_headers(scope, response)
        protocol.response_bytes(response.status, response.headers, response.body)

    async def _refuse(
        self,
        scope: Scope,
        error: ServiceError,
        caller: str,
        has_body: bool = True,
        trace: Trace | None = None,
    ) -> HttpResponse:
        """The answer to a request whose body is not read, or not to its end."""
        request = HttpRequest(
            scope.method, scope.path, scope.headers.get, b"", caller=caller, trace=trace
        )
        response = await self._app.refuse(request, error)
        # The rest of the body is still arriving, so an HTTP/1 connection cannot be used again.
        if has_body:
            _end_connection(scope, response)
        return response

    def _give_back(self, body: bytes, claim: Claim | None) -> None:
        """Take the bytes of a request out of the budget."""
        if claim is None:
            self._budget.used -= len(body)
        else:
            claim.close()

    def _early_refusal(self, scope: Scope, caller: str) -> HttpResponse | None:
        return self._app.early_refusal(
            HttpRequest(
                scope.method, scope.path, scope.headers.get, b"", scope.query_string, caller
            )
        )

    async def _body(
        self, scope: Scope, protocol: Exchange, headers: RequestHeaders, timeout: float = 0.0
    ) -> tuple[bytes, Claim | None]:
        """The whole body, and its claim unless it is small and only counted.

        Raises RequestTooLarge before reading past the limit, RequestTimeout if the body is late,
        InvalidArgument if it is cut short, InFlightLimit if there is no room for it, and
        DeadlineExceeded after `timeout` seconds, if that is not 0.
        """
        length = headers.get("content-length")
        size = -1 if length is None else int(length)
        if size > self._max_request_bytes:
            raise RequestTooLarge.of("body", self._max_request_bytes)
        if size < 0 and scope.method in ("GET", "HEAD") and _has_no_body(scope):
            return b"", None
        body, claim = await self._arriving(scope, protocol, size, timeout)
        if claim is None:
            self._budget.count(len(body), "http")
        return body, claim

    async def _arriving(
        self, scope: Scope, protocol: Exchange, size: int, timeout: float
    ) -> tuple[bytes, Claim | None]:
        """A body that has to be waited for, with its claim unless it is small. As `_body`."""
        task = asyncio.current_task()
        assert task is not None
        self._receiving[task] = self._loop.time(), protocol
        timer = None
        if timeout:
            passed = DeadlineExceeded.of("timeout")
            timer = self._loop.call_later(timeout, self._give_up, task, passed)
        try:
            # A connection of HTTP/1 has one such body at a time, one of HTTP/2 has many.
            if 0 <= size <= _WHOLE_BYTES and scope.http_version != "2":
                return await protocol(), None
            return await self._in_chunks(scope, protocol, size, task)
        except (Ended, ProtocolError, ProtocolClosed):
            # The client closed its side early; it may still read an answer.
            raise _cut_short() from None
        except asyncio.CancelledError:
            error = self._late.pop(task, None)
            if error is None:
                raise
            task.uncancel()
            raise error from None
        finally:
            del self._receiving[task]
            if timer is not None:
                timer.cancel()

    async def _in_chunks(
        self, scope: Scope, protocol: Exchange, size: int, task: asyncio.Task[None]
    ) -> tuple[bytes, Claim]:
        """A body in pieces, with its claim. Raises as `_body` does.

        `size` is -1 if it is unknown until the end (chunked): then it is claimed, as the largest
        that it can be, when more has arrived than may be read whole.
        """
        budget, most = self._budget, self._max_request_bytes
        too_slow = partial(self._give_up, task)
        first = size if size >= 0 or scope.http_version != "2" else min(_WHOLE_BYTES, most)
        claim = await budget.room(first, "http", too_slow) if first >= 0 else None
        try:
            # Its value is its buffer: joining chunks would copy 4 MB on the loop, for some 2 ms.
            body = io.BytesIO()
            received = empty_chunks = 0
            async for chunk in protocol:
                received += body.write(chunk)
                empty_chunks += not chunk
                if received > most:
                    raise RequestTooLarge.of("body", most)
                if size < 0 and received > _WHOLE_BYTES and (claim is None or claim.size < most):
                    if claim is not None:
                        claim.close()
                    claim = await budget.room(most, "http", too_slow)
                if claim is not None:
                    claim.moved = received
            # Granian ends every body with an empty chunk, and reports an error as another one. So
            # does HTTP/2 for an empty DATA frame, and HTTP/1 for trailers, if a client has any.
            is_http_1 = scope.http_version.startswith("1")
            if received < size or (
                empty_chunks > 1 and is_http_1 and "trailer" not in scope.headers
            ):
                raise _cut_short()
            if claim is None:
                claim = await budget.room(received, "http")
            else:
                claim.complete(received)
            return body.getvalue(), claim
        except BaseException:
            if claim is not None:
                claim.close()
            raise

    def _sweep(self) -> None:
        """Give up the bodies that have been arriving for too long.

        One timer for all of them: one per request would cost a tenth of a request's time.
        """
        self._loop.call_later(self._body_timeout / 8, self._sweep)
        oldest = self._loop.time() - self._body_timeout
        for task, (began, _) in self._receiving.items():
            if began < oldest:
                self._give_up(task, RequestTimeout.of("body", self._body_timeout))

    def slow_clients(self, seconds: float) -> set[str]:
        """The clients (ADDRESS:PORT) with a body that has been arriving for this long."""
        latest = self._loop.time() - seconds
        return {
            self.in_flight[protocol]
            for began, protocol in self._receiving.values()
            if began < latest
        }

    def give_way(self, client: str) -> None:
        """End the requests of a client whose bodies are arriving, as others need its place."""
        for task, (_, protocol) in self._receiving.items():
            if self.in_flight[protocol] == client:
                self._give_up(task, Overloaded.slow_body())

    def _give_up(self, task: asyncio.Task[None], error: ServiceError) -> None:
        """Cancel a task whose body is arriving; its request ends with `error`."""
        if task not in self._late:
            self._late[task] = error
            task.cancel()

    def _through_flask(
        self, scope: Scope, request: HttpRequest, identity: Identity | None
    ) -> HttpResponse:
        """Call Flask through WSGI (PEP 3333). Runs in a thread: Flask waits for the loop."""
        status = 500
        headers: list[tuple[str, str]] = []

        def start_response(line: str, pairs: list[tuple[str, str]], exc_info: Any = None) -> None:
            nonlocal status
            status = int(line.split(" ", 1)[0])
            # Carriers count the body themselves, as they do without Flask.
            headers[:] = [(n.lower(), v) for n, v in pairs if n.lower() != "content-length"]

        chunks = self._wsgi_app(_environ(scope, request, identity), start_response)
        try:
            content = b"".join(chunks)
        finally:
            getattr(chunks, "close", lambda: None)()
        return HttpResponse(status, headers, content)


def _begin(traces: Traces, headers: Any) -> Trace | None:
    return traces.begin(headers.get_all("traceparent"), headers.get_all("tracestate"))


def _end_connection(scope: Scope, response: HttpResponse) -> None:
    """Let an HTTP/1 connection end with this answer.

    HTTP/2 forbids the header (RFC 9113, 8.2.2): it ends a stream alone, and carriers say GOAWAY.
    """
    header = ("connection", "close")
    if scope.http_version.startswith("1") and header not in response.headers:
        response.headers.append(header)


def _has_no_body(scope: Scope) -> bool:
    """Whether a request without content-length has no body, so that none need be read."""
    return scope.http_version.startswith("1") and "transfer-encoding" not in scope.headers


def _cut_short() -> InvalidArgument:
    return InvalidArgument("The body is damaged or cut short: its end did not arrive.")


def _environ(scope: Scope, request: HttpRequest, identity: Identity | None) -> dict[str, Any]:
    host, _, port = scope.server.rpartition(":")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope.method,
        "SCRIPT_NAME": "",
        # PEP 3333: bytes of the path, carried as latin-1. Its %-escapes are undone.
        "PATH_INFO": scope.path.encode().decode("latin-1"),
        "QUERY_STRING": scope.query_string,
        "SERVER_NAME": host,
        "SERVER_PORT": port,
        "SERVER_PROTOCOL": f"HTTP/{scope.http_version}",
        "REMOTE_ADDR": scope.client.rpartition(":")[0],
        "CONTENT_LENGTH": str(len(request.body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.scheme,
        "wsgi.input": io.BytesIO(request.body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "mnist.caller": request.caller,
        "mnist.identity": identity,
        "mnist.trace": request.trace,
        "mnist.arrived": request.arrived,
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
