from __future__ import annotations

import asyncio
import re

import pytest

from service.core.errors import NoSuchEndpoint
from service.http.message import HttpRequest, HttpResponse
from service.http.playground.pages import STATIC, Playground

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


def request_of(path: str = "/", **headers: str) -> HttpRequest:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpRequest("GET", path, headers.get, b"")


def file_of(playground: Playground, name: str, **headers: str) -> HttpResponse:
    return asyncio.run(playground.file(request_of(f"/playground/{name}", **headers), name))


@pytest.mark.parametrize(
    ("accept", "wants_page"),
    [
        (BROWSER, True),
        ("text/html", True),
        ("text/*", True),
        ("application/json;q=0.5, text/html", True),
        ("*/*", False),  # curl
        ("", False),
        ("application/json", False),
        ("application/json, text/html", False),
        ("text/html;q=0.1, */*", False),
        ("image/png", False),
        ("x" * 2000 + ", text/html", False),
        (",;=" * 500, False),
    ],
)
def test_only_clients_that_prefer_html_get_the_page(accept: str, wants_page: bool) -> None:
    assert Playground().wants_page(request_of(accept=accept)) is wants_page


def test_without_an_accept_header_there_is_no_page() -> None:
    assert not Playground().wants_page(request_of())


def test_the_page_names_the_default_model_as_text() -> None:
    response = Playground('a"><b>').page(request_of())
    assert b'data-model="a&quot;&gt;&lt;b&gt;"' in response.body
    assert ("vary", "accept") in response.headers


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("main.js", "text/javascript; charset=utf-8"),
        ("style.css", "text/css; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
        ("mnist-7.png", "image/png"),
    ],
)
def test_a_file_has_its_content_type(name: str, kind: str) -> None:
    response = file_of(Playground(), name)
    assert response.body == (STATIC / name).read_bytes()
    assert dict(response.headers)["content-type"] == kind


def test_an_unchanged_file_is_not_sent_again() -> None:
    playground = Playground()
    etag = dict(file_of(playground, "main.js").headers)["etag"]
    again = file_of(playground, "main.js", if_none_match=etag)
    assert (again.status, again.body) == (304, b"")
    assert file_of(playground, "style.css", if_none_match=etag).status == 200


@pytest.mark.parametrize("name", ["missing.js", "index.html", "..", "../pages.py"])
def test_other_files_do_not_exist(name: str) -> None:
    with pytest.raises(NoSuchEndpoint):
        file_of(Playground(), name)


def test_a_playground_that_is_off_has_neither_page_nor_files() -> None:
    playground = Playground(enabled=False)
    assert not playground.wants_page(request_of(accept=BROWSER))
    with pytest.raises(NoSuchEndpoint):
        file_of(playground, "main.js")


def test_files_name_each_other_and_no_other_host() -> None:
    named: set[str] = set()
    for path in STATIC.glob("*.*"):
        if path.suffix == ".png":
            continue
        text = path.read_text()
        named.update(re.findall(r'"playground/([\w.-]+)"', text))
        named.update(re.findall(r'from "\./([\w.-]+)"', text))
        hosts = set(re.findall(r"(?:https?:)?//([\w-]+(?:\.[\w-]+)+)", text))
        assert hosts <= {"www.w3.org", "creativecommons.org"}, path  # a namespace and a link
    assert named >= {"main.js", "style.css", "icon.svg", "api.js", "pad.js", "view.js"}
    assert named <= {path.name for path in STATIC.iterdir()}


def test_the_page_has_no_inline_code() -> None:
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"\s(on\w+|style)=", page)
    assert re.findall(r"<script[^>]*>([^<]*)</script>", page) == [""]
    assert "<style" not in page
