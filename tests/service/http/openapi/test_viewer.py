from __future__ import annotations

import asyncio
import re

import pytest

from service.core.errors import NoSuchEndpoint
from service.http.message import HttpRequest, HttpResponse
from service.http.openapi.viewer import STATIC, Viewer
from service.http.playground.pages import STATIC as PLAYGROUND

REQUEST = HttpRequest("GET", "/docs", {}.get, b"")


def file_of(viewer: Viewer, name: str) -> HttpResponse:
    return asyncio.run(viewer.file(REQUEST, name))


def test_the_page_and_its_files_are_served() -> None:
    viewer = Viewer()
    page = asyncio.run(viewer.page(REQUEST))
    assert page.body == (STATIC / "index.html").read_bytes()
    assert dict(page.headers)["content-type"].startswith("text/html")
    assert file_of(viewer, "main.js").body == (STATIC / "main.js").read_bytes()


@pytest.mark.parametrize("name", ["missing.js", "index.html", "", "..", "../viewer.py"])
def test_other_files_do_not_exist(name: str) -> None:
    with pytest.raises(NoSuchEndpoint):
        file_of(Viewer(), name)


def test_a_viewer_that_is_off_has_neither_page_nor_files() -> None:
    viewer = Viewer(enabled=False)
    with pytest.raises(NoSuchEndpoint):
        asyncio.run(viewer.page(REQUEST))
    with pytest.raises(NoSuchEndpoint):
        file_of(viewer, "main.js")


def test_files_name_files_that_exist_and_no_other_host() -> None:
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"\s(on\w+|style)=", page)
    assert re.findall(r"<script[^>]*>([^<]*)</script>", page) == [""]
    for folder, name in re.findall(r'="(docs|playground)/([\w.-]+)"', page):
        assert ({"docs": STATIC, "playground": PLAYGROUND}[folder] / name).is_file()
    for path in STATIC.iterdir():
        text = path.read_text()
        assert not re.search(r"(?:https?:)?//[\w-]+(?:\.[\w-]+)+", text), path
        for name in re.findall(r'from "([\w./-]+)"', text):
            folder = PLAYGROUND if name.startswith("../playground/") else STATIC
            assert (folder / name.rpartition("/")[2]).is_file(), name
