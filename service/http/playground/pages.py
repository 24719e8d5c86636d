"""Serves the playground's files from memory: the page at `/`, the rest below `/playground/`.

The page is static: it does everything through the public endpoints. It needs no build step and
nothing from other hosts, and its Content-Security-Policy forbids both inline code and requests to
other hosts.
"""

from __future__ import annotations

import hashlib
from html import escape
from pathlib import Path
from typing import NamedTuple

from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from service.core.errors import NoSuchEndpoint
from service.http.message import JSON, HttpRequest, HttpResponse

STATIC = Path(__file__).parent / "static"
_PAGE = "index.html"
_HTML = "text/html"
# Not those of `mimetypes`, which differ from system to system.
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
_LONGEST_ACCEPT = 1024  # of the header Accept; browsers send some 150 characters
# Pictures come from files that people choose (blob:) and from the steps of an answer (data:).
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
_HEADERS = (
    ("cache-control", "no-cache"),  # asked for again each time, and answered with 304
    ("content-security-policy", _POLICY),
    ("cross-origin-opener-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
)


class _File(NamedTuple):
    content: bytes
    headers: tuple[tuple[str, str], ...]
    etag: str


class Playground:
    """The files, read once; none if the playground is off.

    The page learns the name of the default model from the attribute `data-model`.
    """

    def __init__(self, default_model: str = "mnist", *, enabled: bool = True) -> None:
        paths = [path for path in STATIC.iterdir() if path.suffix in _TYPES] if enabled else []
        contents = {path.name: path.read_bytes() for path in paths}
        if _PAGE in contents:
            model = f'data-model="{escape(default_model)}"'.encode()
            contents[_PAGE] = contents[_PAGE].replace(b'data-model=""', model)
        self._files = {name: _file(name, content) for name, content in contents.items()}

    def wants_page(self, request: HttpRequest) -> bool:
        """Whether a request for `/` is a browser's: the playground is on, and HTML is preferred.

        Clients that take anything, as curl does, get JSON.
        """
        if _PAGE not in self._files:
            return False
        header = (request.header("accept") or "")[:_LONGEST_ACCEPT]
        accept = parse_accept_header(header, MIMEAccept)
        return accept.best_match([JSON, _HTML]) == _HTML

    def page(self, request: HttpRequest) -> HttpResponse:
        """The page itself; call it if `wants_page`."""
        response = _answer(self._files[_PAGE], request)
        response.headers.append(("vary", "accept"))
        return response

    async def file(self, request: HttpRequest, file: str) -> HttpResponse:
        """GET /playground/{file}. Raises NoSuchEndpoint, for every file if it is off."""
        if file not in self._files or file == _PAGE:
            raise NoSuchEndpoint.of(request.path)
        return _answer(self._files[file], request)


def _file(name: str, content: bytes) -> _File:
    etag = f'W/"{hashlib.sha256(content).hexdigest()[:16]}"'
    kind = _TYPES[Path(name).suffix]
    return _File(content, (("content-type", kind), ("etag", etag), *_HEADERS), etag)


def _answer(file: _File, request: HttpRequest) -> HttpResponse:
    if request.header("if-none-match") == file.etag:
        return HttpResponse(304, [("etag", file.etag), *_HEADERS], b"")
    return HttpResponse(200, list(file.headers), file.content)
