from __future__ import annotations

from pathlib import Path

from service.http.message import HttpRequest
from service.http.static_files import PAGE_HEADERS, is_known, read_files, static_file


def test_the_policy_of_pages_is_strict() -> None:
    headers = dict(PAGE_HEADERS)
    assert headers["content-security-policy"].startswith("default-src 'none'; ")
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_files_have_their_content_type(tmp_path: Path) -> None:
    for name in ("a.js", "b.css", "c.html", "d.svg", "e.png", "notes.txt"):
        (tmp_path / name).write_text("model")
    files = read_files(tmp_path, {b"model": b"mnist"})
    assert files.keys() == {"a.js", "b.css", "c.html", "d.svg", "e.png"}
    assert files["a.js"].content == b"model"
    assert files["c.html"].content == b"mnist"
    assert dict(files["a.js"].headers)["content-type"] == "text/javascript; charset=utf-8"


def test_a_client_that_has_the_file_gets_no_content() -> None:
    file = static_file(b"{}", "application/json")
    request = HttpRequest("GET", "/", {"if-none-match": file.etag}.get, b"")
    assert file.answer(request)[::2] == (304, b"")
    assert ("vary", "accept-encoding") in file.answer(request).headers
    assert file.answer(request._replace(header={}.get))[::2] == (200, b"{}")


def test_any_form_of_if_none_match_is_understood() -> None:
    etag = static_file(b"{}", "application/json").etag
    for header in (etag, etag.removeprefix("W/"), f'"other", {etag}', f'{etag} ,W/"b"', "*"):
        assert is_known(header, etag), header
    for header in ("", '"other"', etag.strip('W/"'), f"W/{etag}"):
        assert not is_known(header, etag), header
