"""The OpenAPI document of a real server: Schemathesis, and the page at /docs in a real browser."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from service.access.keys import SCOPES, Key, KeysFile, digest_of, new_key
from service.http.openapi.viewer import STATIC
from tests.conftest import ROOT, SHIPPED_MODELS, Server
from tests.e2e.browser import running_browser, violations
from tests.e2e.openapi.conformance import DOCUMENT, check

CONFIGURATION = Path(__file__).parent / "openapi" / "schemathesis.toml"
OPERATIONS = sum(map(len, DOCUMENT["paths"].values()))
LEAST_CASES = 5000
MOST_BYTES = 20 * 1024


def test_the_command_of_the_manual_returns_the_document(server: Server) -> None:
    (command,) = re.findall(r"^curl .*openapi.json$", (ROOT / "docs/api.md").read_text(), re.M)
    command = command.replace("127.0.0.1:8000", server.http)
    document = json.loads(subprocess.check_output(["bash", "-c", command]))
    assert document == json.loads(json.dumps(DOCUMENT))


@pytest.fixture
def memory() -> Iterator[Path]:
    """A shared memory object of 1,000 bytes."""
    path = Path("/dev/shm") / f"mnist-openapi-{os.getpid()}"
    path.write_bytes(bytes(1000))
    yield path
    path.unlink()


def test_schemathesis_finds_no_answer_that_is_not_in_the_document(
    start_server: Callable[..., Server], tmp_path: Path, memory: Path
) -> None:
    models, report = tmp_path / "models", tmp_path / "report.json"
    shutil.copytree(SHIPPED_MODELS / "mnist", models / "mnist")
    # For unloading, which leaves the other model to the other operations.
    shutil.copytree(SHIPPED_MODELS / "mnist" / "2", models / "spare" / "2")
    server = start_server(models, shared_memory_regions=3, workers=1)
    program = [sys.executable, "-m", "schemathesis.cli", "--config-file", CONFIGURATION]
    options = ["--no-color", "--report=json", f"--report-json-path={report}"]
    result = subprocess.run(
        [*program, "run", f"http://{server.http}/openapi.json", *options],
        cwd=ROOT,
        env=os.environ | {"MNIST_TEST_KEY": memory.name},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    found: dict[str, Any] = json.loads(report.read_text())
    assert found["failures"] == []
    assert found["complete"]
    assert found["test_cases"]["generated"] >= LEAST_CASES
    # All but GET /openapi.json, from where it has the document.
    assert found["operations"]["tested"] == OPERATIONS - 1


def test_schemathesis_finds_nothing_on_a_server_with_keys_either(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    """Few requests with a key of every scope, and as many with one that may read only."""
    keys, report = tmp_path / "keys", tmp_path / "report.json"
    all_of_it, read = new_key(), new_key()
    entries = [
        Key("all", frozenset(SCOPES), None, digest_of(all_of_it)),
        Key("read", frozenset({"read"}), None, digest_of(read)),
    ]
    KeysFile(keys).change(lambda _: entries)
    server = start_server(keys_file=keys, model_control_mode="none")
    program = [sys.executable, "-m", "schemathesis.cli", "--config-file", CONFIGURATION]
    # model_control_mode refuses its changes.
    options = ["--exclude-operation-id=change_log_settings", "--phases=fuzzing", "--max-examples=2"]
    options += ["--no-color", "--report=json", f"--report-json-path={report}"]
    for key, place in ((all_of_it, "x-api-key: {}"), (read, "authorization: Bearer {}")):
        header = f"--header={place.format(key)}"
        result = subprocess.run(
            [*program, "run", f"http://{server.http}/openapi.json", *options, header],
            cwd=ROOT,
            env=os.environ | {"MNIST_TEST_KEY": "none"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout
        found: dict[str, Any] = json.loads(report.read_text())
        assert found["failures"] == []
        assert found["test_cases"]["generated"] > OPERATIONS


PAGE = {"Origin": "http://page.example"}
PREFLIGHT = PAGE | {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "x-api-key",
}


def test_answers_to_pages_of_others_and_to_what_is_no_request_are_in_the_document(
    start_server: Callable[..., Server],
) -> None:
    server = start_server(allowed_origins=PAGE["Origin"])
    headers = {f"x-{number}": "1" for number in range(100)}
    for method, path, more, expected in (
        ("GET", "/", PAGE | {"Accept": "text/html"}, 200),
        ("GET", "/v2", PAGE, 200),
        ("GET", "/v2/", PAGE, 200),
        ("GET", "/docs", PAGE, 200),
        ("OPTIONS", "/predict", PREFLIGHT, 204),
        ("OPTIONS", "/predict", PAGE, 200),
        ("POST", "/predict", PAGE, 415),
        ("PUT", "/predict", PAGE, 405),
        ("GET", "/nowhere", PAGE, 404),
        ("GET", "/v2", {"Origin": "http://other.example"}, 403),
        ("GET", "/docs/", PAGE, 308),
        ("HEAD", "/docs/nothing.js", PAGE, 404),
        ("GET", "/v2", headers, 431),
        ("HEAD", "/v2", headers, 431),
        ("GET", "/v2", {"Transfer-Encoding": "nothing"}, 400),
    ):
        connection = http.client.HTTPConnection(server.http, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, headers=more)
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            assert answer.status == expected, (method, path)
            check(method, path, answer.status, names, answer.read())


@pytest.fixture(scope="module")
def pages(server: Server) -> Iterator[Callable[..., Page]]:
    """A function that opens /docs; no page may complain, nor ask another host."""
    complaints: list[str] = []
    expected = "Failed to load resource: the server responded with a status of 404 (Not Found)"
    with running_browser() as browser:

        def opened(fragment: str = "", **options: Any) -> Page:
            page = browser.new_context(**options).new_page()
            page.set_default_timeout(60_000)
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on(
                "request",
                lambda request: server.http in request.url or complaints.append(request.url),
            )
            page.goto(f"http://{server.http}/docs{fragment}")
            page.wait_for_selector("html[data-ready]")
            return page

        yield opened
    assert set(complaints) <= {expected}


def test_the_page_is_small() -> None:
    assert sum(len(gzip.compress(path.read_bytes())) for path in STATIC.iterdir()) <= MOST_BYTES


def test_a_slash_at_the_end_leads_to_the_page(pages: Callable[..., Page]) -> None:
    page = pages("/#predict")
    assert page.url.endswith("/docs#predict")
    assert page.locator("#predict form").is_visible()
    page.context.close()


def test_a_server_without_keys_shows_no_button_for_one(pages: Callable[..., Page]) -> None:
    page = pages()
    assert page.locator("#key-open").is_hidden()
    page.context.close()


def test_the_page_lists_every_operation_and_finds_them(pages: Callable[..., Page]) -> None:
    page = pages()
    shown = page.locator(".operation:visible")
    routes = [
        (path, method)
        for path, item in DOCUMENT["paths"].items()
        for method in item
        if method in ("get", "post")
    ]
    assert shown.count() == len(routes)
    page.check("#minor")
    assert shown.count() == OPERATIONS
    page.uncheck("#minor")
    page.fill("#filter", "predict 503")
    assert shown.locator("code").all_inner_texts() == ["/predict"]
    page.fill("#filter", "nothing like this")
    assert page.locator("#none").is_visible()
    page.context.close()


@pytest.mark.parametrize(
    ("operation", "status"), [("predict", "200 OK"), ("infer", "200 OK"), ("unload", "404")]
)
def test_the_form_sends_what_the_operation_takes(
    pages: Callable[..., Page], operation: str, status: str
) -> None:
    page = pages(f"#{operation}")
    form = page.locator(f"#{operation} form")
    if operation == "predict":
        form.locator("select").select_option("application/json")
    if operation == "unload":
        form.locator("input").first.fill("none")
    form.locator("button.main").click()
    output = form.locator("output")
    output.locator(".status").wait_for()
    assert output.locator(".status").inner_text().startswith(status)
    assert "x-request-id: " in output.inner_text()
    page.context.close()


def test_predict_has_an_example_of_a_picture(pages: Callable[..., Page]) -> None:
    page = pages("#predict")
    form = page.locator("#predict form")
    assert form.locator("textarea").input_value().startswith('{"image":"data:image/png;base64,')
    form.locator("button.main").click()
    form.locator("output .status").wait_for()
    assert '"digit": 7' in form.locator("output").inner_text()
    page.context.close()


def test_a_pattern_is_what_a_value_matches(pages: Callable[..., Page]) -> None:
    page = pages("#predict")
    assert "string, matches ^[1-9][0-9]{0,17}$" in page.locator("#predict").inner_text()
    page.context.close()


def test_the_form_sends_a_file_and_shows_the_call(
    pages: Callable[..., Page], tmp_path: Path
) -> None:
    page = pages("#read")
    form = page.locator("#read form")
    form.locator("select").select_option("multipart/form-data")
    form.locator("input[type=file]").set_input_files(ROOT / "docs" / "seven.png")
    command = form.locator("pre").first.inner_text()
    assert command.endswith("/read' -F image=@'seven.png'")
    form.locator("button.main").click()
    form.locator("output .status").wait_for()
    assert '"text": "7"' in form.locator("output").inner_text()
    answer = subprocess.check_output(["bash", "-c", f"{command} -s"], cwd=ROOT / "docs")
    assert json.loads(answer)["text"] == "7"
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_and_a_phone_needs_no_scrolling_sideways(
    pages: Callable[..., Page], scheme: str
) -> None:
    size = {"width": 360, "height": 740}
    page = pages("#infer_of_version", color_scheme=scheme, viewport=size)
    # What is closed is opened, down to the fields of the outputs.
    details = "[...document.querySelectorAll('#infer_of_version details')]"
    for _ in range(3):
        page.evaluate(f"{details}.forEach((each) => {{ each.open = true; }})")
        page.wait_for_function(f"{details}.every((each) => !each.open || each.children[1])")
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.context.close()
