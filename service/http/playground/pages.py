"""Serves the playground's files from memory: the page at `/`, the rest below `/playground/`.

The page is static: it does everything through the public endpoints.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from service.core.errors import NoSuchEndpoint
from service.http.message import JSON, HttpRequest, HttpResponse
from service.http.static_files import read_files

STATIC = Path(__file__).parent / "static"
_PAGE = "index.html"
_HTML = "text/html"
_LONGEST_ACCEPT = 1024  # of the header Accept; browsers send some 150 characters


class Playground:
    """The files, read once; none if the playground is off.

    The page learns the name of the default model from the attribute `data-model`.
    """

    def __init__(self, default_model: str = "mnist", *, enabled: bool = True) -> None:
        model = f'data-model="{escape(default_model)}"'.encode()
        self._files = read_files(STATIC, {b'data-model=""': model}) if enabled else {}

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
        response = self._files[_PAGE].answer(request)
        response.headers.append(("vary", "accept"))
        return response

    async def file(self, request: HttpRequest, file: str) -> HttpResponse:
        """GET /playground/{file}. Raises NoSuchEndpoint, for every file if it is off."""
        if file not in self._files or file == _PAGE:
            raise NoSuchEndpoint.of(request.path)
        return self._files[file].answer(request)
