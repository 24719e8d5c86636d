"""The control plane over HTTP: configuration, statistics, loading, log level, shared memory.

Source: Triton's extensions of the protocol: "Model Configuration", "Statistics", "Model
Repository", "Logging", "Trace", "System Shared Memory", "CUDA Shared Memory".
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from service.core.errors import InvalidArgument
from service.http.message import Handler, HttpRequest, HttpResponse, json_response, parse_object
from service.operations.inference import Operations
from service.runtime.shared_memory import SharedRegion

T = TypeVar("T")


async def model_config(
    operations: Operations, request: HttpRequest, model: str, version: str = ""
) -> HttpResponse:
    """GET v2/models/{model}[/versions/{version}]/config."""
    return json_response(operations.administration.configuration(model, version))


async def statistics(
    operations: Operations, request: HttpRequest, model: str = "", version: str = ""
) -> HttpResponse:
    """GET v2/models[/{model}[/versions/{version}]]/stats, summed over all workers."""
    versions = await operations.administration.statistics(model, version)
    return json_response({"model_stats": versions})


async def index(operations: Operations, request: HttpRequest) -> HttpResponse:
    """POST v2/repository/index: every version on disk; with "ready", only the loaded ones."""
    ready = _field(parse_object(request.body), "ready", False)
    return json_response(
        [
            {
                "name": entry.name,
                "version": entry.version,
                "state": "READY" if entry.ready else "UNAVAILABLE",
                "reason": entry.reason,
            }
            for entry in await operations.administration.index(ready)
        ]
    )


async def load(operations: Operations, request: HttpRequest, model: str) -> HttpResponse:
    """POST v2/repository/models/{model}/load."""
    _check_origin(operations, request)
    parameters: dict[str, Any] = _field(parse_object(request.body), "parameters", {})
    await operations.administration.load_model(model, parameters)
    return json_response({})


async def unload(operations: Operations, request: HttpRequest, model: str) -> HttpResponse:
    """POST v2/repository/models/{model}/unload; no model has dependents that unload with it."""
    _check_origin(operations, request)
    _field(parse_object(request.body), "parameters", {})
    await operations.administration.unload_model(model)
    return json_response({})


async def log_settings(operations: Operations, request: HttpRequest) -> HttpResponse:
    """GET v2/logging."""
    return json_response(operations.administration.log_settings())


async def change_log_settings(operations: Operations, request: HttpRequest) -> HttpResponse:
    """POST v2/logging: change the settings in the body."""
    _check_origin(operations, request)
    changes = parse_object(request.body)
    return json_response(await operations.administration.change_log_settings(changes))


async def trace_settings(
    operations: Operations, request: HttpRequest, model: str = ""
) -> HttpResponse:
    """GET v2[/models/{model}]/trace/setting."""
    return json_response(operations.administration.trace_settings({}, model))


async def change_trace_settings(
    operations: Operations, request: HttpRequest, model: str = ""
) -> HttpResponse:
    """POST v2[/models/{model}]/trace/setting: tracing cannot be switched on."""
    changes = parse_object(request.body)
    return json_response(operations.administration.trace_settings(changes, model))


class MemoryHandlers(NamedTuple):
    """The handlers of one kind of shared memory."""

    status: Handler
    register: Handler
    unregister: Handler


async def _status(operations: Operations, request: HttpRequest, region: str = "") -> HttpResponse:
    regions = operations.administration.regions(region)
    return json_response([registered._asdict() for registered in regions])


async def _register(operations: Operations, request: HttpRequest, region: str) -> HttpResponse:
    _check_origin(operations, request)
    body = parse_object(request.body)
    await operations.administration.register_region(
        SharedRegion(
            name=region,
            key=_field(body, "key", ""),
            offset=_field(body, "offset", 0),
            byte_size=_field(body, "byte_size", 0),
        )
    )
    return json_response({})


async def _unregister(
    operations: Operations, request: HttpRequest, region: str = ""
) -> HttpResponse:
    _check_origin(operations, request)
    await operations.administration.unregister_region(region)
    return json_response({})


async def _cuda_status(
    operations: Operations, request: HttpRequest, region: str = ""
) -> HttpResponse:
    return json_response(operations.administration.cuda_regions(region))


async def _cuda_register(operations: Operations, request: HttpRequest, region: str) -> HttpResponse:
    operations.administration.register_cuda_region()
    return json_response({})


async def _cuda_unregister(
    operations: Operations, request: HttpRequest, region: str = ""
) -> HttpResponse:
    return json_response({})  # no region is ever registered


SYSTEM_MEMORY = MemoryHandlers(_status, _register, _unregister)
CUDA_MEMORY = MemoryHandlers(_cuda_status, _cuda_register, _cuda_unregister)


def _check_origin(operations: Operations, request: HttpRequest) -> None:
    """Raise Forbidden for a change that a web page requests."""
    operations.administration.check_origin(request.header("host"), request.header("origin"))


def _field(body: dict[str, Any], name: str, default: T) -> T:
    """A field of the type of its default. Raises InvalidArgument if it has another type."""
    value: T = body.get(name, default)
    if type(value) is not type(default):
        raise InvalidArgument(f"{name}: must be of type {type(default).__name__}.")
    return value
