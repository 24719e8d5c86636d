"""Takes the pictures of the README and of docs/: python -m tests.e2e.screenshot [NAME ...].

The names are `playground`, which needs a server on port 8000 (make serve), `report`, the
evaluation of the shipped model, and `site`, pages of the documentation in every width and theme,
which go to build/looks for a person to look at. All need Chromium.
"""

from __future__ import annotations

import http.server
import io
import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser

from tests.conftest import ROOT
from tests.e2e.browser import Playground, running_browser
from tests.e2e.strokes import DIGITS

FILE = ROOT / "docs" / "playground.png"
REPORT = ROOT / "docs" / "report.png"
LOOKS = ROOT / "build" / "looks"
MODEL = ROOT / "models" / "mnist" / "2" / "model.onnx"
MKDOCS = (sys.executable, "-m", "mkdocs", "build", "-f", "docs/site/mkdocs.yml")
_COLOURS = 255
_PAGES = ("", "tutorial", "problems", "architecture", "settings", "reference/commands")


def take(browser: Browser, address: str, path: Path) -> None:
    """Draw a digit, show what counted, and save the window as a PNG of few colours."""
    playground = Playground(browser, address, viewport={"width": 1160, "height": 1100})
    playground.draw(DIGITS[2])
    playground.wait_for("accepted", "2")
    playground.page.click("#heat")
    playground.page.wait_for_selector("#legend:not([hidden])")
    playground.page.mouse.move(0, 0)
    playground.page.evaluate("document.activeElement.blur()")
    playground.page.wait_for_timeout(500)  # until the bars have moved
    picture = playground.page.screenshot()
    playground.close()
    _save(picture, path)


def take_report(browser: Browser, path: Path) -> None:
    """Evaluate the shipped model, and save the top of its report."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "training.commands.evaluate", MODEL, "--report", folder],
            check=True,
        )
        page = browser.new_page(viewport={"width": 840, "height": 1080})
        page.goto(f"file://{folder}/report.html")
        # Its title is the name of the folder.
        page.evaluate("document.querySelector('h1').textContent = 'models/mnist/2'")
        _save(page.screenshot(), path)
        page.close()


def look_at_the_site(browser: Browser, folder: Path) -> None:
    """Build the documentation, and save its pages, wide and narrow, light and dark."""
    with tempfile.TemporaryDirectory() as site:
        subprocess.run([*MKDOCS, "--site-dir", site], cwd=ROOT, check=True)
        handler = partial(Silent, directory=site)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            folder.mkdir(parents=True, exist_ok=True)
            for theme in ("light", "dark"):
                for width in (1280, 360):
                    page = browser.new_page(
                        color_scheme=theme, viewport={"width": width, "height": 900}
                    )
                    for name in _PAGES:
                        page.goto(f"http://127.0.0.1:{server.server_port}/{name}")
                        file = f"{name.replace('/', '-') or 'home'}-{width}-{theme}.png"
                        page.screenshot(path=folder / file)
                    page.close()
            server.shutdown()


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_request(self, *_: object) -> None:
        """Write no line per request."""


def _save(picture: bytes, path: Path) -> None:
    window = Image.open(io.BytesIO(picture)).convert("RGB")
    window.quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["playground", "report", "site"]
    with running_browser() as chromium:
        if "playground" in wanted:
            take(chromium, "127.0.0.1:8000", FILE)
        if "report" in wanted:
            take_report(chromium, REPORT)
        if "site" in wanted:
            look_at_the_site(chromium, LOOKS)
