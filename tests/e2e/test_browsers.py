"""Web pages of other servers, in a real browser: they can do nothing unless they are listed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.conftest import Server
from tests.e2e.browser import running_browser

# A name that this browser alone resolves to this machine, as after DNS rebinding.
REBOUND = "rebound.example"
LOAD = "/v2/repository/models/mnist/load"
UNLOAD = "/v2/repository/models/mnist/unload"
# Sends a request, and returns what the page may see of the answer.
FETCH = """async ([url, headers, size, mode]) => {
    try {
        const body = new Uint8Array(size);
        const response = await fetch(url, {method: "POST", headers, body, mode});
        const identified = response.headers.get("x-request-id") !== null;
        return [response.status, await response.text(), identified];
    } catch (error) {
        return [0, String(error), false];
    }
}"""


class EmptyPage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>A page</title>")

    def log_message(self, *values: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def sites() -> Iterator[list[str]]:
    """The origins of two web servers: the one that is listed, and another."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), EmptyPage) for _ in range(2)]
    for each in servers:
        threading.Thread(target=each.serve_forever, daemon=True).start()
    yield [f"http://127.0.0.1:{each.server_port}" for each in servers]
    for each in servers:
        each.shutdown()
        each.server_close()


@pytest.fixture(scope="module")
def target(start_server: Callable[..., Server], sites: list[str]) -> Server:
    return start_server(allowed_origins=sites[0])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser(f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1") as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(60_000)
    yield page
    context.close()


def send(
    page: Page, server: Server, path: str, size: int = 0, mode: str = "cors", **headers: str
) -> tuple[int, str, bool]:
    """What a page sees of the answer to a POST: status, text, and whether it sees the headers."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    status, text, sees = page.evaluate(FETCH, [f"http://{server.http}{path}", named, size, mode])
    return status, text, sees


def is_loaded(server: Server) -> bool:
    return server.get("/v2/models/mnist/ready")[0] == 200


OCTETS = "application/octet-stream"


@pytest.mark.parametrize("content_type", [OCTETS, "text/plain"])
def test_a_page_of_another_server_cannot_call(
    page: Page, target: Server, sites: list[str], content_type: str
) -> None:
    page.goto(sites[1])
    for path, size in (("/predict", 784), (UNLOAD, 0), ("/v2/logging", 0)):
        assert send(page, target, path, size, content_type=content_type)[0] == 0
    assert is_loaded(target)


def test_what_a_page_sends_blindly_changes_nothing(
    page: Page, target: Server, sites: list[str]
) -> None:
    page.goto(sites[1])
    assert send(page, target, UNLOAD, mode="no-cors")[0] == 0
    page.set_content(f'<form method="post" action="http://{target.http}{UNLOAD}"></form>')
    with page.expect_navigation() as navigation:
        page.evaluate("document.forms[0].submit()")
    assert navigation.value is not None
    assert navigation.value.status == 403
    assert is_loaded(target)


def test_a_page_without_an_origin_cannot_call(page: Page, target: Server) -> None:
    page.goto("data:text/html,<title>Its requests have the origin null</title>")
    assert send(page, target, "/predict", 784, content_type=OCTETS)[0] == 0
    assert send(page, target, UNLOAD, mode="no-cors")[0] == 0
    assert is_loaded(target)


def test_a_page_of_a_listed_origin_can_call(page: Page, target: Server, sites: list[str]) -> None:
    page.goto(sites[0])
    status, text, sees_headers = send(page, target, "/predict", 784, content_type=OCTETS)
    assert (status, sees_headers) == (200, True), text
    # It can read errors, and send headers that need a preflight.
    status, text, sees_headers = send(page, target, "/predict", 5, content_type=OCTETS, x_own="1")
    assert (status, sees_headers) == (400, True), text
    assert send(page, target, UNLOAD)[0] == 200
    assert not is_loaded(target)
    assert send(page, target, LOAD)[0] == 200
    assert is_loaded(target)


def test_no_page_can_show_the_server_in_a_frame(
    page: Page, target: Server, sites: list[str]
) -> None:
    page.goto(sites[0])
    for path in ("/", "/v2"):
        with page.expect_response(lambda answer: target.http in answer.url):
            page.set_content(f'<iframe src="http://{target.http}{path}"></iframe>')
        frame = page.frames[-1]
        page.wait_for_function("document.querySelector('iframe').contentDocument === null")
        assert frame.url.startswith("chrome-error:") or frame.locator("body").inner_text() == ""


def test_a_name_that_was_made_to_mean_this_machine_is_refused(page: Page, target: Server) -> None:
    for path in ("/", "/v2/models/mnist"):
        response = page.goto(f"http://{REBOUND}:{target.http_port}{path}")
        assert response is not None
        assert response.status == 403
        assert "allowed_hosts" in response.text()
    # As a page of that name, all the same.
    assert send(page, target, UNLOAD)[0] == 0
    assert is_loaded(target)
