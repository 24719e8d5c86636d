"""The page at `/docs`, which shows the OpenAPI document and sends requests; and its files.

It has the style and the elements of the playground's page.
"""

from __future__ import annotations

from pathlib import Path

from service.core.errors import NoSuchEndpoint
from service.http.message import HttpRequest, HttpResponse
from service.http.static_files import read_files

STATIC = Path(__file__).parent / "static"
_PAGE = "index.html"


class Viewer:
    """The files, read once; none if the pages for browsers are off."""

    def __init__(self, *, enabled: bool = True) -> None:
        self._files = read_files(STATIC, {}) if enabled else {}

    async def page(self, request: HttpRequest) -> HttpResponse:
        """GET /docs. Raises NoSuchEndpoint if it is off."""
        return self._answer(request, _PAGE)

    async def file(self, request: HttpRequest, file: str) -> HttpResponse:
        """GET /docs/{file}. Raises NoSuchEndpoint, for every file if it is off."""
        return self._answer(request, "" if file == _PAGE else file)

    def _answer(self, request: HttpRequest, name: str) -> HttpResponse:
        if name not in self._files:
            raise NoSuchEndpoint.of(request.path)
        return self._files[name].answer(request)
