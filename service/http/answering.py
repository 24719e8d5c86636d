"""Answers HTTP requests: finds the route, runs its handler, turns errors into answers."""

from __future__ import annotations

import re
from functools import lru_cache, partial
from typing import NamedTuple

from service.access.origins import SAFE_HEADERS, Header, preflight
from service.core.errors import Overloaded, ServiceError, Unauthenticated
from service.http.compression import Compression
from service.http.digits import model_of
from service.http.message import Handler, HttpRequest, HttpResponse, json_response
from service.http.openapi.viewer import Viewer
from service.http.playground.pages import Playground
from service.http.routes import OPTIONS, ROUTES, UNMATCHED, Route
from service.http.static_files import PAGE_HEADERS
from service.observe.recorder import Attempt, RequestRecorder
from service.operations.administration import Administration
from service.operations.digits import Digits
from service.operations.inference import Inference

_METHODS = ", ".join(sorted({route.method for route in ROUTES} | {"HEAD", "OPTIONS"}))


# Request lines that are remembered, of up to this length: their route, and while it is overloaded
# their model.
_KNOWN, _KNOWN_LENGTH = 256, 512


class Match(NamedTuple):
    """The route of a request, its handler bound to the object it needs, the path's parameters."""

    route: Route
    handler: Handler
    parameters: dict[str, str]
    headers: tuple[Header, ...] = SAFE_HEADERS  # of every answer


class HttpApp:
    """Every endpoint of the service, without a socket: a request in, a response out."""

    def __init__(
        self,
        *,
        inference: Inference,
        digits: Digits,
        administration: Administration,
        playground: Playground,
        viewer: Viewer,
        recorder: RequestRecorder,
        compression: Compression,
    ) -> None:
        self._recorder = recorder
        self.traces = recorder.traces
        self._inference = inference
        self.overloaded = inference.overloaded
        self._known_run_by = lru_cache(_KNOWN)(self._run_by)
        self._compression = compression
        needed = {
            Inference: inference,
            Digits: digits,
            Administration: administration,
            Playground: playground,
            Viewer: viewer,
        }
        matches = [
            Match(
                route,
                partial(route.handler, needed[route.needs]),
                {},
                PAGE_HEADERS if route.needs in (Playground, Viewer) else SAFE_HEADERS,
            )
            for route in ROUTES
        ]
        self.matches = matches
        self._exact = {
            (m.route.method, m.route.path): m for m in matches if "<" not in m.route.path
        }
        # Paths with parameters that were asked for; searching for one costs 3 % of a request.
        self._found: dict[tuple[str, str], Match] = {}
        # Paths with parameters, in the order of the table, as regular expressions.
        self._patterns = [
            (re.compile(re.sub(r"<(\w+)>", r"(?P<\1>[^/]+)", match.route.path)), match)
            for match in matches
            if "<" in match.route.path
        ]

    async def answer(self, request: HttpRequest, match: Match | None = None) -> HttpResponse | None:
        """Answer a request; None if it matches no route. `match` is a route found elsewhere.

        Never raises: what a handler raises becomes a JSON body {"error": sentence}.
        """
        method, path = request.method, request.path
        match = match or self._exact.get((method, path)) or self._search(method, path)
        if match is None:
            return None
        route = match.route
        request_id = self._recorder.request_id(request.header("x-request-id"))
        trace = request.trace
        if trace is not None:
            trace.handle(request.method, "" if route is UNMATCHED else route.path, request_id)
        try:
            with Attempt(self._recorder, "http", route.operation, request_id, trace) as attempt:
                if request.header("content-encoding"):
                    request = await self._compression.decode(request)
                response = await match.handler(request, **match.parameters)
                if route.compress and len(response.body) >= self._compression.min_bytes:
                    response = await self._compression.encode(request, response)
                attempt.code = str(response.status)
        except ServiceError as error:
            response = _error(error)
            # compress_min_bytes holds for errors too.
            if route.compress and len(response.body) >= self._compression.min_bytes:
                response = await self._compression.encode(request, response)
        response.headers.append(("x-request-id", request_id))
        response.headers.extend(match.headers)
        return response

    def early_refusal(self, request: HttpRequest) -> HttpResponse | None:
        """The answer to a request, without its body, whose model is overloaded; else None.

        Call it only while `overloaded` is not empty.
        """
        if len(request.path) + len(request.query) > _KNOWN_LENGTH:
            target = self._run_by(request.method, request.path, request.query)
        else:
            target = self._known_run_by(request.method, request.path, request.query)
        if target is None:
            return None
        operation, model, version = target
        error = self._inference.refusal(model, version, caller=request.caller)
        if error is None:
            return None
        request_id = self._recorder.request_id(request.header("x-request-id"))
        self._recorder.refused("http", operation, request_id, error)
        status, headers, body = _refusal(error)
        return HttpResponse(status, [*headers, ("x-request-id", request_id)], body)

    def _run_by(self, method: str, path: str, query: str) -> tuple[str, str, str] | None:
        """The operation, and name and version of the model, that a request line asks to run."""
        request = HttpRequest(method, path, lambda name: None, b"", query)
        match = self.find(request)
        operation = match.route.operation if match else ""
        if match and operation == "infer":
            model, version = match.parameters["model"], match.parameters.get("version", "")
        elif operation in ("predict", "read"):
            model, version = model_of(request)
        else:
            return None
        return operation, model or self._inference.default_model, version

    async def refuse(
        self, request: HttpRequest, error: Exception, route: Route | None = None
    ) -> HttpResponse:
        """Answer a request whose body could not be read, or that matches no route, with an error.

        It is recorded like any other; without `route` under the route that the request matches.
        """
        if route is None:
            match = self.find(request)
            route = match.route if match else UNMATCHED

        async def raise_error(request: HttpRequest) -> HttpResponse:
            raise error

        def header(name: str) -> str | None:
            # There is no body to decompress.
            return None if name == "content-encoding" else request.header(name)

        without_body = request._replace(header=header)
        response = await self.answer(without_body, Match(route, raise_error, {}))
        assert response is not None
        return response

    async def preflight(self, request: HttpRequest) -> HttpResponse:
        """Answer a browser that asks whether a page may send a request: it may, on every route."""

        async def allow(request: HttpRequest) -> HttpResponse:
            return HttpResponse(204, preflight(_METHODS, request.header), b"")

        response = await self.answer(request, Match(OPTIONS, allow, {}))
        assert response is not None
        return response

    def is_timed(self, method: str, path: str) -> bool:
        """Whether a request of this method and path takes `?timeout=`."""
        match = self._exact.get((method, path))
        return match is not None and match.route.needs is Digits

    def find(self, request: HttpRequest) -> Match | None:
        """The route of a request, with the parameters in its path; None if there is no route."""
        return self.match(request.method, request.path)

    def match(self, method: str, path: str) -> Match | None:
        """The route of a method and a path, as `find`."""
        return self._exact.get((method, path)) or self._search(method, path)

    def _search(self, method: str, path: str) -> Match | None:
        match = self._found.get((method, path))
        if match is not None:
            return match
        match = self._first_match(method, path)
        if match is not None and len(path) <= _KNOWN_LENGTH:
            if len(self._found) >= _KNOWN:
                self._found.clear()
            self._found[method, path] = match
        return match

    def _first_match(self, method: str, path: str) -> Match | None:
        for pattern, match in self._patterns:
            if match.route.method == method and (parameters := pattern.fullmatch(path)):
                return Match(match.route, match.handler, parameters.groupdict(), match.headers)
        return None


@lru_cache(64)
def _refusal(error: Overloaded) -> HttpResponse:
    """The answer that many requests have in common, but for the id of the request."""
    response = _error(error)
    response.headers.extend(SAFE_HEADERS)
    return response


def _error(error: ServiceError) -> HttpResponse:
    response = json_response({"error": error.message}, error.http_status)
    if isinstance(error, Overloaded):
        response.headers.append(("retry-after", str(error.retry_after_s)))
    elif isinstance(error, Unauthenticated):
        response.headers.append(("www-authenticate", "Bearer"))
    return response
