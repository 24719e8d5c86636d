from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import flask
import pytest

from service.access.gate import Gate
from service.access.keys import Key, Keyring, Scope, digest_of
from service.core.batching import Batcher, BatchLimits
from service.http.flask_app import create_app
from service.http.routes import ROUTES
from service.repository.models import Repository
from service.runtime.session import SessionOptions
from tests.service.composition import http_app_of, operations_of

LIMIT = 1 << 20


@contextlib.contextmanager
def application(models: Path, gate: Gate | None = None) -> Iterator[flask.Flask]:
    """The application over an empty repository, its event loop in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    with ThreadPoolExecutor(1) as executor:
        repository = Repository(
            models,
            SessionOptions("cpu"),
            make_batcher=lambda name, version, session: Batcher(session, BatchLimits(), executor),
            executor=executor,
        )
        app = create_app(http_app_of(operations_of(repository, "mnist")), loop, LIMIT, gate)
        app.add_url_rule("/boom", "boom", lambda: 1 // 0)
        thread.start()
        try:
            yield app
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[flask.Flask]:
    with application(tmp_path_factory.mktemp("models")) as app:
        yield app


def test_without_a_front_the_gate_is_asked_here(tmp_path: Path) -> None:
    reader: frozenset[Scope] = frozenset({"read"})
    keys = Keyring([Key("reader", reader, None, digest_of("secret"))])
    with application(tmp_path, Gate(frozenset(), keys)) as app:
        client = app.test_client()
        for path in ("/v2", "/v2/", "/metrics", "/nowhere", "/v2//"):
            response = client.get(path)
            assert response.status_code == 401, path
            assert response.headers["www-authenticate"] == "Bearer"
        assert client.options("/v2").status_code == 401
        assert client.get("/v2/health/live").status_code == 200
        key = {"authorization": "Bearer secret"}
        assert client.get("/v2/", headers=key).status_code == 200
        assert client.get("/nowhere", headers=key).status_code == 404
        assert client.options("/v2", headers=key).status_code == 200
        for path in ("/metrics", "/metrics/"):
            assert client.get(path, headers=key).status_code == 403
        # A client cannot say whom the front has let in.
        assert client.get("/v2", headers={"mnist.identity": "root"}).status_code == 401


def test_every_route_has_a_rule(app: flask.Flask) -> None:
    rules = {(method, rule.rule) for rule in app.url_map.iter_rules() for method in rule.methods}
    assert {(route.method, route.path) for route in ROUTES} <= rules


def test_route_is_answered_by_its_handler(app: flask.Flask) -> None:
    response = app.test_client().get("/v2/health/ready", headers={"x-request-id": "mine"})
    assert response.status_code == 503
    assert response.get_json()["reason"] == "Model 'mnist' is not loaded."
    assert response.headers["x-request-id"] == "mine"


def test_docs_with_a_slash_at_the_end_leads_to_the_page_behind_any_prefix(app: flask.Flask) -> None:
    """Relative links of the page would lead elsewhere from there."""
    response = app.test_client().get("/docs/")
    assert (response.status_code, response.headers["location"]) == (308, "../docs")
    for path in ("/docs//", "/playground/", "/playground"):
        assert app.test_client().get(path).status_code == 404


def test_path_parameters_reach_the_handler(app: flask.Flask) -> None:
    response = app.test_client().get("/v2/models/a%20b/versions/7")
    assert response.status_code == 404
    assert "a b" in response.get_json()["error"]


def test_unknown_path_is_answered_with_404(app: flask.Flask) -> None:
    response = app.test_client().get("/nowhere")
    assert response.status_code == 404
    assert "/nowhere" in response.get_json()["error"]
    assert response.headers["x-request-id"]


def test_wrong_method_is_answered_with_405_and_the_allowed_ones(app: flask.Flask) -> None:
    response = app.test_client().delete("/v2/health/live")
    assert response.status_code == 405
    assert "DELETE" in response.get_json()["error"]
    assert response.headers["allow"] == "GET, HEAD, OPTIONS"


def test_body_over_the_limit_is_answered_with_413(app: flask.Flask) -> None:
    client = app.test_client()
    response = client.post("/predict", data=bytes(LIMIT + 1))
    assert response.status_code == 413
    assert "max_request_bytes" in response.get_json()["error"]
    assert client.post("/predict", data=bytes(LIMIT)).status_code == 415  # read, but of no type


def test_unexpected_error_in_flask_is_an_internal_error(app: flask.Flask) -> None:
    response = app.test_client().get("/boom")
    assert response.status_code == 500
    assert response.headers["x-request-id"]


def test_options_are_the_methods_of_the_path(app: flask.Flask) -> None:
    response = app.test_client().options("/v2/logging", headers={"x-request-id": "mine"})
    assert (response.status_code, response.data) == (200, b"")
    assert response.headers["allow"] == "GET, HEAD, OPTIONS, POST"
    assert response.headers["x-request-id"] == "mine"
    assert "content-type" not in response.headers
