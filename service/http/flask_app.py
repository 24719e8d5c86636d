"""The Flask application: every route of the service, as a WSGI application.

Its views run in threads. Each hands its request to the worker's event loop, where the `HttpApp`
that serves the front answers it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import flask
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge

from service.access.gate import Gate, Identity, Need
from service.access.origins import Origins
from service.core import errors
from service.http.answering import HttpApp, Match
from service.http.message import HttpRequest, HttpResponse
from service.http.routes import OPTIONS, UNMATCHED, Route


def create_app(
    http_app: HttpApp,
    loop: asyncio.AbstractEventLoop,
    max_request_bytes: int,
    gate: Gate | None = None,
    origins: Origins | None = None,
) -> flask.Flask:
    """A Flask application that answers its requests on `loop`, which runs in another thread.

    `origins` decides which web pages may call, where no `HttpFront` has.
    """
    routes: dict[str, Route] = {}  # by their endpoints
    app = flask.Flask("service.http", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max_request_bytes
    app.logger.disabled = True  # `HttpApp` logs what fails, under its request id
    app.url_map.strict_slashes = False
    # Otherwise Werkzeug redirects a path with an empty segment, in HTML.
    app.url_map.merge_slashes = False

    def add(match: Match) -> None:
        route = match.route

        def view(**parameters: str) -> flask.Response:
            try:
                request = _request(flask.request.get_data(cache=False))
            except RequestEntityTooLarge:
                refusal = errors.RequestTooLarge.of("body", max_request_bytes)
                return _wait(http_app.refuse(_request(b""), refusal, route))
            return _wait(http_app.answer(request, match._replace(parameters=parameters)))

        endpoint = f"{route.method} {route.path}"
        routes[endpoint] = route
        app.add_url_rule(route.path, endpoint, view, methods=[route.method])

    def unmatched(error: HTTPException) -> flask.Response:
        response = _wait(http_app.refuse(_request(b""), _cause_of(error), UNMATCHED))
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            response.headers["allow"] = ", ".join(sorted(error.valid_methods))
        return response

    def _wait(answer: Any) -> flask.Response:
        return _response(asyncio.run_coroutine_threadsafe(answer, loop).result())

    @app.before_request
    def answer_before_flask() -> flask.Response | None:
        """Refuse what Werkzeug takes for something else: `post` for POST and `//v2` for /v2.

        A proxy's rules would not see them. Answer OPTIONS here, so that it is recorded and has a
        request id, like any other request.
        """
        method, path = flask.request.environ["REQUEST_METHOD"], flask.request.environ["PATH_INFO"]
        error: errors.ServiceError
        route = None if method == "OPTIONS" else routes.get(flask.request.endpoint or "")
        try:
            _admit(gate, origins, route.scope if route else "any", loop)
        except errors.ServiceError as refusal:
            return _wait(http_app.refuse(_request(b""), refusal, route or UNMATCHED))
        if path.startswith("//"):
            error = errors.NoSuchEndpoint.of(path)
        elif method != method.upper():  # methods are case-sensitive (RFC 9110, 9.1)
            error = errors.Unimplemented(
                f"There is no method {errors.excerpt(method)}; methods are in upper case."
            )
        elif method == "OPTIONS" and flask.request.url_rule is not None:
            methods = ", ".join(sorted(app.make_default_options_response().allow))
            match = Match(OPTIONS, _options, {"methods": methods})
            return _wait(http_app.answer(_request(b""), match))
        else:
            return None
        return _wait(http_app.refuse(_request(b""), error, UNMATCHED))

    for match in http_app.matches:
        add(match)
    app.register_error_handler(HTTPException, unmatched)
    return app


def _admit(
    gate: Gate | None, origins: Origins | None, need: Need, loop: asyncio.AbstractEventLoop
) -> None:
    """Raise what the gate and `origins` raise, unless the front has let this request in.

    The front may have taken it for another route: Flask ignores a slash at the end.
    """
    request = flask.request
    identity: Identity | None = request.environ.get("mnist.identity")
    if origins is not None:
        header = request.headers.get
        origins.check(header("host"), request.scheme, header, is_proxied=False)
    if gate is None:
        return
    if identity is not None:
        identity.require(need)
        return

    async def ask() -> None:
        gate.admit(
            need,
            request.headers.getlist("authorization"),
            request.headers.getlist("x-api-key"),
            request.remote_addr or "",
        )

    asyncio.run_coroutine_threadsafe(ask(), loop).result()


async def _options(request: HttpRequest, methods: str) -> HttpResponse:
    """OPTIONS of any path: the methods that it has."""
    return HttpResponse(200, [("allow", methods)], b"")


def _request(body: bytes) -> HttpRequest:
    request = flask.request
    query = request.query_string.decode("latin1")
    return HttpRequest(
        method=request.method,
        path=request.path,
        header=request.headers.get,
        body=body,
        query=query,
        caller=request.environ.get("mnist.caller", ""),
        trace=request.environ.get("mnist.trace"),
        arrived=request.environ.get("mnist.arrived", 0.0),
    )


class _Response(flask.Response):
    default_mimetype = None  # an answer without a body has no content type


def _response(response: HttpResponse) -> flask.Response:
    return _Response(response.body, response.status, response.headers)


def _cause_of(error: HTTPException) -> Exception:
    """The error to answer with: one of ours, or the exception behind a status of 500."""
    method, path = errors.excerpt(flask.request.method), errors.excerpt(flask.request.path)
    if error.code == errors.MethodNotAllowed.http_status:
        return errors.MethodNotAllowed(f"{path} does not take {method}.")
    if error.code == errors.NoSuchEndpoint.http_status:
        return errors.NoSuchEndpoint.of(flask.request.path)
    if error.code is None or error.code >= errors.InternalError.http_status:
        return getattr(error, "original_exception", None) or error
    return errors.InvalidArgument(f"{error.name}: {error.description}")
