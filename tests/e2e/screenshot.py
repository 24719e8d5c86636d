"""Takes the picture of the playground in the README: python -m tests.e2e.screenshot.

It needs a server on port 8000 (make serve) and Chromium.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser

from tests.conftest import ROOT
from tests.e2e.browser import Playground, running_browser
from tests.e2e.strokes import DIGITS

FILE = ROOT / "docs" / "playground.png"
_COLOURS = 255


def take(browser: Browser, address: str, path: Path) -> None:
    """Draw a digit, show what counted, and save the window as a PNG of few colours."""
    playground = Playground(browser, address, viewport={"width": 1160, "height": 1064})
    playground.draw(DIGITS[2])
    playground.wait_for("accepted", "2")
    playground.page.click("#heat")
    playground.page.wait_for_selector("#legend:not([hidden])")
    playground.page.mouse.move(0, 0)
    playground.page.evaluate("document.activeElement.blur()")
    playground.page.wait_for_timeout(500)  # until the bars have moved
    window = Image.open(io.BytesIO(playground.page.screenshot())).convert("RGB")
    playground.close()
    window.quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    with running_browser() as chromium:
        take(chromium, "127.0.0.1:8000", FILE)
