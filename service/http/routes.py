"""The table of every HTTP route, and how the front finds one."""

from __future__ import annotations

import re
from typing import NamedTuple

from service import SERVER_NAME, __version__
from service.http import administration, open_inference
from service.http.administration import MemoryHandlers
from service.http.digits import predict
from service.http.message import Handler, HttpRequest, HttpResponse, json_response
from service.observe import metrics
from service.operations.inference import Operations


class Route(NamedTuple):
    """An endpoint; `path` is in Flask's notation.

    Answers are compressed for callers who accept that on `compress` routes alone: asyncio's
    tritonclient accepts gzip everywhere, but undoes it in answers to inference only.
    """

    method: str
    path: str
    operation: str
    handler: Handler
    compress: bool = False


async def index(operations: Operations, request: HttpRequest) -> HttpResponse:
    """GET /: what this server is, and what can be asked of it."""
    endpoints = [f"{route.method} {route.path}" for route in ROUTES]
    return json_response({"name": SERVER_NAME, "version": __version__, "endpoints": endpoints})


async def prometheus(operations: Operations, request: HttpRequest) -> HttpResponse:
    """GET /metrics: Prometheus' text format."""
    content = await operations.administration.exposition()
    return HttpResponse(200, [("content-type", metrics.CONTENT_TYPE)], content)


def _of_model(
    method: str, end: str, operation: str, handler: Handler, compress: bool = False
) -> list[Route]:
    model = "/v2/models/<model>"
    return [
        Route(method, model + end, operation, handler, compress),
        Route(method, model + "/versions/<version>" + end, operation, handler, compress),
    ]


def _of_memory(kind: str, handlers: MemoryHandlers) -> list[Route]:
    every, one = f"/v2/{kind}sharedmemory", f"/v2/{kind}sharedmemory/region/<region>"
    operation = f"{kind}_shared_memory"
    return [
        Route("GET", every + "/status", operation + "_status", handlers.status),
        Route("GET", one + "/status", operation + "_status", handlers.status),
        Route("POST", one + "/register", operation + "_register", handlers.register),
        Route("POST", every + "/unregister", operation + "_unregister", handlers.unregister),
        Route("POST", one + "/unregister", operation + "_unregister", handlers.unregister),
    ]


_LOAD = "/v2/repository/models/<model>"
_TRACE = "/v2/models/<model>/trace/setting"

# The first ones are found first.
ROUTES = [
    *_of_model("POST", "/infer", "infer", open_inference.infer, compress=True),
    Route("GET", "/", "index", index),
    Route("GET", "/metrics", "metrics", prometheus, compress=True),
    Route("POST", "/predict", "predict", predict, compress=True),
    Route("GET", "/v2", "server_metadata", open_inference.server_metadata),
    Route("GET", "/v2/health/live", "live", open_inference.live),
    Route("GET", "/v2/health/ready", "ready", open_inference.ready),
    *_of_model("GET", "", "model_metadata", open_inference.model_metadata),
    *_of_model("GET", "/ready", "model_ready", open_inference.model_ready),
    *_of_model("GET", "/config", "model_config", administration.model_config),
    Route("GET", "/v2/models/stats", "statistics", administration.statistics),
    *_of_model("GET", "/stats", "statistics", administration.statistics),
    Route("POST", "/v2/repository/index", "repository_index", administration.index),
    Route("POST", _LOAD + "/load", "load", administration.load),
    Route("POST", _LOAD + "/unload", "unload", administration.unload),
    Route("GET", "/v2/logging", "log_settings", administration.log_settings),
    Route("POST", "/v2/logging", "change_log_settings", administration.change_log_settings),
    Route("GET", "/v2/trace/setting", "trace_settings", administration.trace_settings),
    Route("POST", "/v2/trace/setting", "trace_settings", administration.change_trace_settings),
    Route("GET", _TRACE, "trace_settings", administration.trace_settings),
    Route("POST", _TRACE, "trace_settings", administration.change_trace_settings),
    *_of_memory("system", administration.SYSTEM_MEMORY),
    *_of_memory("cuda", administration.CUDA_MEMORY),
]


# What requests are recorded as that never came to a route.
UNMATCHED = Route("*", "*", "unmatched", index)


class FastRoutes:
    """Finds the route of a path: in a dictionary, or by regular expressions one after another."""

    def __init__(self) -> None:
        self._exact = {(r.method, r.path): r for r in ROUTES if "<" not in r.path}
        self._patterns = [(r, _pattern(r.path)) for r in ROUTES if "<" in r.path]

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]] | None:
        """The route and the parameters in its path, or None for Flask to answer."""
        if route := self._exact.get((method, path)):
            return route, {}
        for route, pattern in self._patterns:
            if route.method == method and (match := pattern.fullmatch(path)):
                return route, match.groupdict()
        return None


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"<(\w+)>", r"(?P<\1>[^/]+)", path))
