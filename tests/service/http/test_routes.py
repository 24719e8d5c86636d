from __future__ import annotations

import asyncio
import re
from collections import Counter
from inspect import signature
from pathlib import Path

import orjson
import pytest

from service import SERVER_NAME, __version__
from service.http.message import HttpRequest
from service.http.playground.pages import Playground
from service.http.routes import ROUTES, index, prometheus
from tests.service.composition import Operations
from tests.service.linear_model import run_with_operations


def parameters_in(path: str) -> set[str]:
    return set(re.findall(r"<(\w+)>", path))


def test_method_and_path_identify_a_route() -> None:
    counts = Counter((route.method, route.path) for route in ROUTES)
    assert counts.most_common(1)[0][1] == 1


def test_handler_takes_the_parameters_of_its_path() -> None:
    for route in ROUTES:
        _, request, *names = signature(route.handler).parameters.values()
        assert request.name == "request", route
        required = {name.name for name in names if name.default is name.empty}
        assert required <= parameters_in(route.path) <= {name.name for name in names}, route


def test_routes_that_share_an_operation_name_share_their_meaning() -> None:
    """Metrics and logs name the operation, so unrelated endpoints must differ in it."""
    needs: dict[str, type] = {}
    for route in ROUTES:
        assert needs.setdefault(route.operation, route.needs) is route.needs, route


# What a caller needs for each operation: a new one has to be decided on here as well.
_SCOPES: dict[tuple[str, str | None], set[str]] = {
    ("GET", None): {"index", "playground", "openapi", "docs", "live", "ready"},
    ("GET", "metrics"): {"metrics"},
    ("POST", "predict"): {"infer", "predict", "read"},
    ("GET", "read"): {
        *("server_metadata", "model_metadata", "model_ready", "model_config", "model_card"),
        *("statistics", "log_settings", "trace_settings"),
        *("system_shared_memory_status", "cuda_shared_memory_status"),
    },
    ("POST", "read"): {"repository_index"},
    ("POST", "admin"): {
        *("load", "unload", "change_log_settings", "trace_settings"),
        *("system_shared_memory_register", "system_shared_memory_unregister"),
        *("cuda_shared_memory_register", "cuda_shared_memory_unregister"),
    },
}


def test_every_route_has_the_scope_that_was_decided_on() -> None:
    scopes: dict[tuple[str, str | None], set[str]] = {}
    for route in ROUTES:
        scopes.setdefault((route.method, route.scope), set()).add(route.operation)
    assert scopes == _SCOPES


@pytest.mark.parametrize("headers", [{}, {"accept": "*/*"}, {"accept": "application/json"}])
def test_index_lists_every_route(headers: dict[str, str]) -> None:
    request = HttpRequest("GET", "/", headers.get, b"")
    body = orjson.loads(asyncio.run(index(Playground(), request)).body)
    assert (body["name"], body["version"]) == (SERVER_NAME, __version__)
    assert body["endpoints"] == [f"{route.method} {route.path}" for route in ROUTES]


def test_index_is_the_playground_for_browsers() -> None:
    request = HttpRequest("GET", "/", {"accept": "text/html"}.get, b"")
    assert asyncio.run(index(Playground(), request)).body.startswith(b"<!doctype html>")


def test_metrics_are_in_the_text_format_of_prometheus(tmp_path: Path) -> None:
    async def scenario(operations: Operations) -> None:
        request = HttpRequest("GET", "/metrics", {}.get, b"")
        response = await prometheus(operations.administration, request)
        assert dict(response.headers)["content-type"].startswith("text/plain")
        assert b"# TYPE mnist_model_load_failures gauge\n" in response.body

    run_with_operations(tmp_path, scenario)
