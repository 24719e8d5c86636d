"""Files of the pages for browsers, served from memory, and the strict policy of the pages.

A page needs no build step and nothing from other hosts, and its policy forbids both inline code and
requests to other hosts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from service.access.origins import Header
from service.http.message import HttpRequest, HttpResponse

# Not those of `mimetypes`, which differ from system to system.
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
# Pictures come from files that people choose (blob:) and from the steps of an answer (data:).
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
# In place of SAFE_HEADERS, on every answer of a route that has such files.
PAGE_HEADERS: tuple[Header, ...] = (
    ("content-security-policy", _POLICY),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
)
_NO_CACHE = ("cache-control", "no-cache")  # asked for again each time, and answered with 304

_VARY = ("vary", "accept-encoding")  # as `compression` adds it to the file itself


class StaticFile(NamedTuple):
    """A file with the headers of its answer."""

    content: bytes
    headers: tuple[tuple[str, str], ...]
    etag: str

    def answer(self, request: HttpRequest) -> HttpResponse:
        """The file, or 304 if the client has it."""
        if is_known(request.header("if-none-match") or "", self.etag):
            return HttpResponse(304, [("etag", self.etag), _NO_CACHE, _VARY], b"")
        return HttpResponse(200, list(self.headers), self.content)


def is_known(if_none_match: str, etag: str) -> bool:
    """Whether a client has what `etag` names (RFC 9110, 13.1.2: a list, compared weakly, or *)."""
    known = {each.strip().removeprefix("W/") for each in if_none_match.split(",")}
    return "*" in known or etag.removeprefix("W/") in known


def read_files(folder: Path, replaced: Mapping[bytes, bytes]) -> dict[str, StaticFile]:
    """The files of a page by name; in HTML, the keys of `replaced` become their values."""
    files = {}
    for path in folder.iterdir():
        if path.suffix in _TYPES:
            content = path.read_bytes()
            if path.suffix == ".html":
                for old, new in replaced.items():
                    content = content.replace(old, new)
            files[path.name] = static_file(content, _TYPES[path.suffix])
    return files


def static_file(content: bytes, content_type: str) -> StaticFile:
    """A file of these contents."""
    etag = f'W/"{hashlib.sha256(content).hexdigest()[:16]}"'
    return StaticFile(content, (("content-type", content_type), ("etag", etag), _NO_CACHE), etag)
