"""The table of every HTTP route."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from service import SERVER_NAME, __version__
from service.access.keys import Scope
from service.core.errors import Unavailable
from service.http import administration as admin
from service.http import open_inference
from service.http.administration import MemoryHandlers
from service.http.digits import predict
from service.http.message import JSON, Handler, HttpRequest, HttpResponse, json_response, to_json
from service.http.openapi import contracts as about
from service.http.openapi.contracts import Contract
from service.http.openapi.document import document
from service.http.openapi.viewer import Viewer
from service.http.playground.pages import Playground
from service.http.reading import read
from service.http.static_files import StaticFile, static_file
from service.observe import metrics
from service.operations.administration import Administration
from service.operations.digits import Digits
from service.operations.inference import Inference


class Route(NamedTuple):
    """An endpoint; `path` is in Flask's notation.

    `handler` is called with the worker's object of the class `needs`; `contract` describes it.
    `scope` is what a caller needs; None is open to everyone.
    Answers are compressed, for clients that accept it, on `compress` routes only: tritonclient's
    asyncio client accepts gzip everywhere, but decompresses only answers to inference.
    """

    method: str
    path: str
    operation: str
    needs: type
    handler: Handler
    contract: Contract
    scope: Scope | None
    compress: bool = False


async def index(playground: Playground, request: HttpRequest) -> HttpResponse:
    """GET /: the playground for browsers, else the server's name, version and endpoints."""
    if playground.wants_page(request):
        return playground.page(request)
    endpoints = [f"{route.method} {route.path}" for route in ROUTES]
    body = {"name": SERVER_NAME, "version": __version__, "endpoints": endpoints}
    response = json_response(body)
    response.headers.append(("vary", "accept"))
    return response


async def docs(viewer: Viewer, request: HttpRequest) -> HttpResponse:
    """GET /docs: the page. Flask takes /docs/ too, where the page's relative links lead nowhere."""
    page = await viewer.page(request)  # 404 if the page is switched off, whatever the path
    # A relative location: a proxy may add a prefix.
    is_moved = request.path.endswith("/")
    return HttpResponse(308, [("location", "../docs")], b"") if is_moved else page


async def prometheus(administration: Administration, request: HttpRequest) -> HttpResponse:
    """GET /metrics: Prometheus' text format."""
    try:
        content = await administration.exposition()
    except OSError as error:  # no descriptor is free
        raise Unavailable(f"The metrics cannot be read: {error.strerror}.") from None
    return HttpResponse(200, [("content-type", metrics.CONTENT_TYPE)], content)


@cache
def _document() -> StaticFile:
    return static_file(to_json(document(ROUTES)), JSON)


async def openapi(playground: Playground, request: HttpRequest) -> HttpResponse:
    """GET /openapi.json: the document of these routes."""
    return _document().answer(request)


def _of_model(
    method: str,
    end: str,
    operation: str,
    needs: type,
    handler: Handler,
    contract: Contract,
    scope: Scope,
    compress: bool = False,
) -> list[Route]:
    model = "/v2/models/<model>"
    return [
        Route(method, model + path, operation, needs, handler, contract, scope, compress)
        for path in (end, "/versions/<version>" + end)
    ]


def _of_memory(kind: str, handlers: MemoryHandlers, registration: Contract) -> list[Route]:
    every, one = f"/v2/{kind}sharedmemory", f"/v2/{kind}sharedmemory/region/<region>"
    operation = f"{kind}_shared_memory"
    status, register, unregister = (f"{operation}_{verb}" for verb in handlers._fields)
    read, add, remove = handlers
    control = Administration
    return [
        Route("GET", every + "/status", status, control, read, about.REGIONS, "read"),
        Route("GET", one + "/status", status, control, read, about.REGION, "read"),
        Route("POST", one + "/register", register, control, add, registration, "admin"),
        Route(
            "POST",
            every + "/unregister",
            unregister,
            control,
            remove,
            about.UNREGISTER_ALL,
            "admin",
        ),
        Route("POST", one + "/unregister", unregister, control, remove, about.UNREGISTER, "admin"),
    ]


_HEALTH = "/v2/health"
_LOAD = "/v2/repository/models/<model>"
_LOG = "/v2/logging"
_TRACE = "/v2/trace/setting"
_MODEL_TRACE = "/v2/models/<model>/trace/setting"

# Earlier routes are tried first.
ROUTES = [
    *_of_model(
        "POST",
        "/infer",
        "infer",
        Inference,
        open_inference.infer,
        about.INFER,
        "predict",
        compress=True,
    ),
    Route("GET", "/", "index", Playground, index, about.INDEX, None, compress=True),
    Route(
        "GET",
        "/playground/<file>",
        "playground",
        Playground,
        Playground.file,
        about.FILES,
        None,
        compress=True,
    ),
    Route(
        "GET", "/openapi.json", "openapi", Playground, openapi, about.DOCUMENT, None, compress=True
    ),
    Route("GET", "/docs", "docs", Viewer, docs, about.VIEWER, None, compress=True),
    Route("GET", "/docs/<file>", "docs", Viewer, Viewer.file, about.FILES, None, compress=True),
    Route(
        "GET",
        "/metrics",
        "metrics",
        Administration,
        prometheus,
        about.METRICS,
        "metrics",
        compress=True,
    ),
    Route("POST", "/predict", "predict", Digits, predict, about.PREDICT, "predict", compress=True),
    Route("POST", "/read", "read", Digits, read, about.READ, "predict", compress=True),
    Route(
        "GET",
        "/v2",
        "server_metadata",
        Inference,
        open_inference.server_metadata,
        about.SERVER_METADATA,
        "read",
    ),
    Route("GET", _HEALTH + "/live", "live", Inference, open_inference.live, about.LIVE, None),
    Route("GET", _HEALTH + "/ready", "ready", Inference, open_inference.ready, about.READY, None),
    *_of_model(
        "GET",
        "",
        "model_metadata",
        Inference,
        open_inference.model_metadata,
        about.MODEL_METADATA,
        "read",
    ),
    *_of_model(
        "GET",
        "/ready",
        "model_ready",
        Inference,
        open_inference.model_ready,
        about.MODEL_READY,
        "read",
    ),
    *_of_model(
        "GET",
        "/config",
        "model_config",
        Administration,
        admin.model_config,
        about.MODEL_CONFIG,
        "read",
    ),
    *_of_model(
        "GET",
        "/card",
        "model_card",
        Administration,
        admin.model_card,
        about.MODEL_CARD,
        "read",
        compress=True,
    ),
    Route(
        "GET",
        "/v2/models/stats",
        "statistics",
        Administration,
        admin.statistics,
        about.STATISTICS,
        "read",
    ),
    *_of_model(
        "GET", "/stats", "statistics", Administration, admin.statistics, about.STATISTICS, "read"
    ),
    Route(
        "POST",
        "/v2/repository/index",
        "repository_index",
        Administration,
        admin.index,
        about.REPOSITORY_INDEX,
        "read",
    ),
    Route("POST", _LOAD + "/load", "load", Administration, admin.load, about.LOAD, "admin"),
    Route("POST", _LOAD + "/unload", "unload", Administration, admin.unload, about.UNLOAD, "admin"),
    Route(
        "GET", _LOG, "log_settings", Administration, admin.log_settings, about.LOG_SETTINGS, "read"
    ),
    Route(
        "POST",
        _LOG,
        "change_log_settings",
        Administration,
        admin.change_log_settings,
        about.CHANGE_LOG_SETTINGS,
        "admin",
    ),
    Route(
        "GET",
        _TRACE,
        "trace_settings",
        Administration,
        admin.trace_settings,
        about.TRACE_SETTINGS,
        "read",
    ),
    Route(
        "POST",
        _TRACE,
        "trace_settings",
        Administration,
        admin.change_trace_settings,
        about.CHANGE_TRACE_SETTINGS,
        "admin",
    ),
    Route(
        "GET",
        _MODEL_TRACE,
        "trace_settings",
        Administration,
        admin.trace_settings,
        about.MODEL_TRACE_SETTINGS,
        "read",
    ),
    Route(
        "POST",
        _MODEL_TRACE,
        "trace_settings",
        Administration,
        admin.change_trace_settings,
        about.CHANGE_MODEL_TRACE_SETTINGS,
        "admin",
    ),
    *_of_memory("system", admin.SYSTEM_MEMORY, about.REGISTER),
    *_of_memory("cuda", admin.CUDA_MEMORY, about.REGISTER_CUDA),
]

# What is recorded for requests that Flask answers: those that match no route, and OPTIONS.
UNMATCHED = Route("*", "*", "unmatched", Playground, index, about.INDEX, None)
OPTIONS = Route("OPTIONS", "*", "options", Playground, index, about.OPTIONS, None)
