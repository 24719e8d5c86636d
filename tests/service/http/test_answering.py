from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from service.access.origins import SAFE_HEADERS, Header
from service.core.errors import InvalidArgument, Overloaded
from service.http.answering import _KNOWN, _KNOWN_LENGTH, HttpApp, Match
from service.http.message import HttpRequest, HttpResponse
from service.http.routes import ROUTES
from service.http.static_files import PAGE_HEADERS
from tests.conftest import ROOT
from tests.service.composition import Operations, http_app_of
from tests.service.linear_model import publish_linear, run_with_operations


def with_app(root: Path, scenario: Callable[[HttpApp], Awaitable[None]]) -> None:
    publish_linear(root, card={"output_kinds": {"scores": "logits"}})

    async def main(operations: Operations) -> None:
        await scenario(http_app_of(operations))

    run_with_operations(root, main)


def request(method: str, path: str, body: bytes = b"", **headers: str) -> HttpRequest:
    by_name = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpRequest(method, path, by_name.get, body)


def error_of(response: HttpResponse) -> str:
    error: str = json.loads(response.body)["error"]
    return error


def test_a_picture_is_answered_without_a_socket(tmp_path: Path) -> None:
    picture = (ROOT / "docs" / "seven.png").read_bytes()

    async def scenario(app: HttpApp) -> None:
        response = await app.answer(
            request("POST", "/predict", picture, content_type="image/png", x_request_id="mine")
        )
        assert response is not None
        assert response.status == 200
        assert ("x-request-id", "mine") in response.headers
        (prediction,) = json.loads(response.body)["predictions"]
        assert len(prediction["probabilities"]) == 10

    with_app(tmp_path, scenario)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/", PAGE_HEADERS),
        ("GET", "/docs", PAGE_HEADERS),
        ("GET", "/playground/nothing", PAGE_HEADERS),
        ("GET", "/openapi.json", PAGE_HEADERS),
        ("GET", "/v2", SAFE_HEADERS),
        ("GET", "/v2/models/linear", SAFE_HEADERS),
        ("GET", "/v2/models/nothing", SAFE_HEADERS),
        ("POST", "/predict", SAFE_HEADERS),
    ],
)
def test_every_answer_has_the_safe_headers_once(
    tmp_path: Path, method: str, path: str, expected: tuple[Header, ...]
) -> None:
    async def scenario(app: HttpApp) -> None:
        response = await app.answer(request(method, path))
        assert response is not None
        names = [name for name, _ in response.headers if name != "vary"]
        assert set(expected) <= set(response.headers)
        assert len(names) == len(set(names))

    with_app(tmp_path, scenario)


def test_a_preflight_is_allowed_every_method_that_a_route_has(tmp_path: Path) -> None:
    async def scenario(app: HttpApp) -> None:
        response = await app.preflight(request("OPTIONS", "/nothing"))
        assert (response.status, response.body) == (204, b"")
        methods = dict(response.headers)["access-control-allow-methods"].split(", ")
        assert set(methods) >= {route.method for route in ROUTES}

    with_app(tmp_path, scenario)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/nothing"), ("PUT", "/predict"), ("GET", "/v2/models/a/versions/1/infer/more")],
)
def test_a_request_that_matches_no_route_is_left_to_flask(
    tmp_path: Path, method: str, path: str
) -> None:
    async def scenario(app: HttpApp) -> None:
        assert await app.answer(request(method, path)) is None

    with_app(tmp_path, scenario)


def test_a_placeholder_in_a_path_is_a_name_like_any_other(tmp_path: Path) -> None:
    async def scenario(app: HttpApp) -> None:
        response = await app.answer(request("GET", "/v2/models/<model>/ready"))
        assert response is not None
        assert response.status == 404
        assert "<model>" in error_of(response)

    with_app(tmp_path, scenario)


def test_every_route_finds_itself(tmp_path: Path) -> None:
    async def scenario(app: HttpApp) -> None:
        for route in ROUTES:
            path = route.path.replace("<", "").replace(">", "")
            match = app.find(request(route.method, path))
            assert match is not None
            assert match.route == route
            assert sorted(match.parameters) == sorted(match.parameters.values())

    with_app(tmp_path, scenario)


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (InvalidArgument("image: is wrong."), 400, "image: is wrong."),
        (Overloaded("Full."), 503, "Full."),
        (ZeroDivisionError("secret"), 500, "request id it-is-me"),
    ],
)
def test_what_a_handler_raises_becomes_an_answer(
    tmp_path: Path, error: Exception, status: int, sentence: str
) -> None:
    async def handler(request: HttpRequest) -> HttpResponse:
        raise error

    async def scenario(app: HttpApp) -> None:
        match = Match(ROUTES[0], handler, {})
        response = await app.answer(request("POST", "/", x_request_id="it-is-me"), match)
        assert response is not None
        assert response.status == status
        assert sentence in error_of(response)
        assert "secret" not in error_of(response)
        headers = dict(response.headers)
        assert headers["x-request-id"] == "it-is-me"
        assert ("retry-after" in headers) == isinstance(error, Overloaded)

    with_app(tmp_path, scenario)


def test_a_long_error_is_compressed_like_any_other_answer(tmp_path: Path) -> None:
    async def handler(request: HttpRequest) -> HttpResponse:
        raise InvalidArgument("é" * 1000)  # two bytes each

    async def scenario(app: HttpApp) -> None:
        match = Match(ROUTES[0], handler, {})
        response = await app.answer(request("POST", "/", accept_encoding="gzip"), match)
        assert response is not None
        assert response.status == 400
        headers = dict(response.headers)
        assert (headers["content-encoding"], headers["vary"]) == ("gzip", "accept-encoding")
        assert "éé" in json.loads(gzip.decompress(response.body))["error"]

    with_app(tmp_path, scenario)


def test_a_refused_request_is_answered_with_its_error(tmp_path: Path) -> None:
    async def scenario(app: HttpApp) -> None:
        for path in ("/predict", "/nothing"):
            response = await app.refuse(request("POST", path), InvalidArgument("No."))
            assert (response.status, error_of(response)) == (400, "No.")

    with_app(tmp_path, scenario)


def test_a_cancelled_request_stays_cancelled(tmp_path: Path) -> None:
    async def never(request: HttpRequest) -> Any:
        await asyncio.Event().wait()

    async def scenario(app: HttpApp) -> None:
        answer = asyncio.ensure_future(
            app.answer(request("POST", "/"), Match(ROUTES[0], never, {}))
        )
        await asyncio.sleep(0)
        answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer

    with_app(tmp_path, scenario)


def test_paths_that_are_remembered_are_few_and_short(tmp_path: Path) -> None:
    async def scenario(app: HttpApp) -> None:
        for index in range(2 * _KNOWN):
            for path in (f"/v2/models/{index}/infer", f"/v2/models/{index:0{_KNOWN_LENGTH}}/infer"):
                for _ in range(2):
                    match = app.match("POST", path)
                    assert match is not None
                    assert match.parameters == {"model": path.split("/")[3]}
            assert app.match("POST", f"/nothing/{index}") is None
        assert app.match("GET", "/v2/models/1/infer") is None
        assert 0 < len(app._found) <= _KNOWN
        assert all(len(path) <= _KNOWN_LENGTH for _, path in app._found)

    with_app(tmp_path, scenario)
