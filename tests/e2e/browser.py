"""A real Chromium on the playground: draws on the sheet, and reads what the page shows."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import axe_playwright_python
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.e2e.strokes import Stroke

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 560, 420  # of the sheet, in its own units


@contextlib.contextmanager
def running_browser(*arguments: str) -> Iterator[Browser]:
    """Start the system's Chromium without a window, with further arguments."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.fail("Chromium is not installed; .ci/run installs it (Debian: chromium).")
    with sync_playwright() as playwright:
        # Chromium's sandbox does not run as root, nor in most containers.
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", *arguments]
        )
        yield browser
        browser.close()


def violations(page: Page) -> list[str]:
    """What axe-core finds, with the elements."""
    # As the browser's own console: the page's policy does not let scripts be added to it.
    page.context.new_cdp_session(page).send("Runtime.evaluate", {"expression": AXE})
    found = page.evaluate("async () => (await axe.run()).violations")
    return [f"{each['id']}: {[node['html'] for node in each['nodes']]}" for each in found]


class Playground:
    """The open page. `complaints` has what the console said, and the requests to other hosts."""

    def __init__(self, browser: Browser, address: str, **options: Any) -> None:
        options = {"viewport": {"width": 1200, "height": 900}} | options
        self.context = browser.new_context(**options)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page: Page = self.context.new_page()
        # A busy machine may take long; a hang is ended all the same.
        self.page.set_default_timeout(60_000)
        self.complaints: list[str] = []
        self.posts: list[Any] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._requested(request, address))
        self._address = address
        self.open()

    def _requested(self, request: Any, address: str) -> None:
        url = urlsplit(request.url)
        if url.scheme in ("http", "https", "ws", "wss") and url.netloc != address:
            self.complaints.append(f"asked {request.url}")
        if request.method == "POST":
            self.posts.append(request)

    def open(self) -> None:
        """Load the page; a reload of the browser's own would also scroll, at any time."""
        self.page.goto(f"http://{self._address}/")
        self.page.wait_for_selector("html[data-ready]")

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A point of the sheet, in pixels of the window."""
        box = self.page.locator("#pad").bounding_box()
        assert box is not None
        return box["x"] + x * box["width"] / WIDTH, box["y"] + y * box["height"] / HEIGHT

    def draw(self, strokes: Sequence[Stroke]) -> None:
        """Draw with the mouse."""
        mouse = self.page.mouse
        self.page.locator("#pad").scroll_into_view_if_needed()
        (left, top), (right, _) = self.at(0, 0), self.at(1, 0)
        scale = right - left
        for stroke in strokes:
            mouse.move(left + stroke[0][0] * scale, top + stroke[0][1] * scale)
            mouse.down()
            for point in stroke[1:]:
                mouse.move(left + point[0] * scale, top + point[1] * scale)
            mouse.up()

    def touch(self, strokes: Sequence[Stroke]) -> None:
        """Draw with a finger."""
        session = self.context.new_cdp_session(self.page)
        for stroke in strokes:
            for i, point in enumerate(stroke):
                x, y = self.at(*point)
                event = {
                    "type": "touchMove" if i else "touchStart",
                    "touchPoints": [{"x": x, "y": y}],
                }
                session.send("Input.dispatchTouchEvent", event)
            session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def clear(self) -> None:
        self.page.click("#clear")
        self.wait_for("empty", "?")

    def wait_for(self, state: str, digit: str) -> None:
        """Wait until the page shows this verdict."""
        self.page.wait_for_function(
            """([state, digit]) => document.getElementById("verdict").dataset.state === state
            && document.getElementById("digit").textContent === digit""",
            arg=[state, digit],
        )

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def bars(self) -> list[str]:
        """What a screen reader says of the ten bars."""
        return [text.strip() for text in self.page.locator("#bars .unseen").all_text_contents()]

    def close(self) -> None:
        """Close the page, which must have had nothing to complain about."""
        self.context.close()
        assert self.complaints == []
