"""The control plane over HTTP: configuration, statistics, loading, log level, shared memory.

Source: Triton's extensions of the protocol: "Model Configuration", "Statistics", "Model
Repository", "Logging", "Trace", "System Shared Memory", "CUDA Shared Memory".
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from service.core.errors import InvalidArgument
from service.http.message import (
    JSON,
    Handler,
    HttpRequest,
    HttpResponse,
    json_response,
    parse_object,
)
from service.operations.administration import Administration
from service.runtime.shared_memory import SharedRegion

T = TypeVar("T")


async def model_config(
    administration: Administration, request: HttpRequest, model: str, version: str = ""
) -> HttpResponse:
    """GET v2/models/{model}[/versions/{version}]/config."""
    return json_response(administration.configuration(model, version))


async def model_card(
    administration: Administration, request: HttpRequest, model: str, version: str = ""
) -> HttpResponse:
    """GET v2/models/{model}[/versions/{version}]/card: the version's model.json, as it is."""
    return HttpResponse(200, [("content-type", JSON)], await administration.card(model, version))


async def statistics(
    administration: Administration, request: HttpRequest, model: str = "", version: str = ""
) -> HttpResponse:
    """GET v2/models[/{model}[/versions/{version}]]/stats, summed over all workers."""
    versions = await administration.statistics(model, version)
    return json_response({"model_stats": versions})


async def index(administration: Administration, request: HttpRequest) -> HttpResponse:
    """POST v2/repository/index: every version on disk; with "ready", only the loaded ones."""
    ready = _field(await parse_object(request.body, administration.max_json_bytes), "ready", False)
    return json_response(
        [
            {
                "name": entry.name,
                "version": entry.version,
                "state": "READY" if entry.ready else "UNAVAILABLE",
                "reason": entry.reason,
            }
            for entry in await administration.index(ready)
        ]
    )


async def load(administration: Administration, request: HttpRequest, model: str) -> HttpResponse:
    """POST v2/repository/models/{model}/load."""
    _check_host(administration, request)
    parameters: dict[str, Any] = _field(
        await parse_object(request.body, administration.max_json_bytes), "parameters", {}
    )
    await administration.load_model(model, parameters)
    return json_response({})


async def unload(administration: Administration, request: HttpRequest, model: str) -> HttpResponse:
    """POST v2/repository/models/{model}/unload; no model has dependents that unload with it."""
    _check_host(administration, request)
    _field(await parse_object(request.body, administration.max_json_bytes), "parameters", {})
    await administration.unload_model(model)
    return json_response({})


async def log_settings(administration: Administration, request: HttpRequest) -> HttpResponse:
    """GET v2/logging."""
    return json_response(administration.log_settings())


async def change_log_settings(administration: Administration, request: HttpRequest) -> HttpResponse:
    """POST v2/logging: change the settings in the body."""
    _check_host(administration, request)
    changes = await parse_object(request.body, administration.max_json_bytes)
    return json_response(await administration.change_log_settings(changes))


async def trace_settings(
    administration: Administration, request: HttpRequest, model: str = ""
) -> HttpResponse:
    """GET v2[/models/{model}]/trace/setting."""
    return json_response(administration.trace_settings({}, model))


async def change_trace_settings(
    administration: Administration, request: HttpRequest, model: str = ""
) -> HttpResponse:
    """POST v2[/models/{model}]/trace/setting: tracing cannot be switched on."""
    changes = await parse_object(request.body, administration.max_json_bytes)
    return json_response(administration.trace_settings(changes, model))


class MemoryHandlers(NamedTuple):
    """The handlers of one kind of shared memory."""

    status: Handler
    register: Handler
    unregister: Handler


async def _status(
    administration: Administration, request: HttpRequest, region: str = ""
) -> HttpResponse:
    regions = administration.regions(region)
    return json_response([registered._asdict() for registered in regions])


async def _register(
    administration: Administration, request: HttpRequest, region: str
) -> HttpResponse:
    _check_host(administration, request)
    body = await parse_object(request.body, administration.max_json_bytes)
    await administration.register_region(
        SharedRegion(
            name=region,
            key=_field(body, "key", ""),
            offset=_field(body, "offset", 0),
            byte_size=_field(body, "byte_size", 0),
        )
    )
    return json_response({})


async def _unregister(
    administration: Administration, request: HttpRequest, region: str = ""
) -> HttpResponse:
    _check_host(administration, request)
    await administration.unregister_region(region)
    return json_response({})


async def _cuda_status(
    administration: Administration, request: HttpRequest, region: str = ""
) -> HttpResponse:
    return json_response(administration.cuda_regions(region))


async def _cuda_register(
    administration: Administration, request: HttpRequest, region: str
) -> HttpResponse:
    administration.register_cuda_region()
    return json_response({})


async def _cuda_unregister(
    administration: Administration, request: HttpRequest, region: str = ""
) -> HttpResponse:
    return json_response({})  # no region is ever registered


SYSTEM_MEMORY = MemoryHandlers(_status, _register, _unregister)
CUDA_MEMORY = MemoryHandlers(_cuda_status, _cuda_register, _cuda_unregister)


def _check_host(administration: Administration, request: HttpRequest) -> None:
    """Raise Forbidden for a change that another machine may have requested."""
    administration.check_host(request.header("host"))


def _field(body: dict[str, Any], name: str, default: T) -> T:
    """A field of the type of its default. Raises InvalidArgument if it has another type."""
    value: T = body.get(name, default)
    if type(value) is not type(default):
        raise InvalidArgument(f"{name}: must be of type {type(default).__name__}.")
    return value
