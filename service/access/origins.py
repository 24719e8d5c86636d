"""Which web pages may call the server, by which names, and the headers that keep browsers strict.

A browser sends whatever a page of any site asks for, from inside the user's network. It adds what
the page cannot forge: `Origin` says whose page it is, `Host` which name was called, and
`Sec-Fetch-Site` whether the two are of one origin. So

- a request with an `Origin` is answered if that is the server's own, or listed in the setting
  allowed_origins. Other pages are refused before the body is read, whatever they ask for. Programs
  send no `Origin`;
- where anyone may call because only this machine can, `Host` must be a name of this machine, an
  address, or listed in the setting allowed_hosts. A page could otherwise make its own host name
  resolve to this machine, and be of the server's origin (DNS rebinding). No name resolves for an
  address, so addresses are safe.

Answers to pages of listed origins have the headers of CORS. They never allow credentials: keys are
sent as a header, which needs none.

gRPC needs none of this: a page cannot send its content type without a preflight, which the gRPC
port does not answer, and browsers speak HTTP/2 only over TLS, where the certificate has to match.

Sources: Fetch (fetch.spec.whatwg.org), "CORS protocol"; RFC 6454 (Origin); W3C Fetch Metadata.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from urllib.parse import SplitResult, urlsplit

from service.core.errors import Forbidden, excerpt

Header = tuple[str, str]

# On every answer; docs/decisions/browsers.md says why these, and what they cost. For answers that
# no browser should show: they are read as nothing but what they say they are, run nothing if a
# browser shows them, and are not embedded by pages of others.
SAFE_HEADERS: tuple[Header, ...] = (
    ("x-content-type-options", "nosniff"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ("cross-origin-resource-policy", "same-origin"),
)

_ANY = "*"
# In the answer to a page that only `*` allows to call.
ANY_ORIGIN: Header = ("access-control-allow-origin", _ANY)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_MAX_KNOWN = 1024
# What a preflight may ask for: names of headers.
_HEADER_NAMES = re.compile(r"[\w!#$%&'*+.^`|~, -]{1,1024}", re.ASCII)
_EXPOSED = "inference-header-content-length, retry-after, server-timing, x-request-id"
_PREFLIGHT_S = "600"  # how long a browser may remember a preflight


class Origins:
    """Decides on the `Origin` and the `Host` of each request of one worker.

    `allowed` are the origins of other pages that may call, or `*` for all. `hosts` are names by
    which the server may be called, or `*`; if there are any, or with `checks_hosts`, the others are
    refused.

    `known_hosts` are values of Host that are accepted; look there before calling `check`.
    """

    def __init__(
        self,
        allowed: Iterable[str] = (),
        hosts: Iterable[str] = (),
        *,
        checks_hosts: bool = False,
    ) -> None:
        self._allowed = frozenset(allowed)
        self._hosts = frozenset(hosts)
        self._checks_hosts = (checks_hosts or bool(self._hosts)) and _ANY not in self._hosts
        self.known_hosts: set[str | None] = {None, ""}
        # Of every answer: a cache must not give one page the answer to another.
        self.headers: tuple[Header, ...] = (("vary", "origin"),) if self._allowed else ()

    def check(
        self,
        host: str | None,
        scheme: str,
        header: Callable[[str], str | None],
        is_proxied: bool,
    ) -> tuple[Header, ...]:
        """The headers of CORS for the answer to a request. Raises Forbidden.

        `header` returns a header by its lower-case name. With `is_proxied` the request comes from a
        trusted proxy, which says in X-Forwarded-Host and -Proto what its client called; the server
        is then not open because of loopback, so its Host is checked only if hosts are listed.
        """
        if host not in self.known_hosts:
            self._check_host(host or "", is_proxied)
        origin = header("origin")
        if origin is None:
            return self.headers
        if is_proxied:
            host = _first(header("x-forwarded-host")) or host
            scheme = _first(header("x-forwarded-proto")) or scheme
        own = _normal(f"{scheme}://{host}")
        if _normal(origin) == own or header("sec-fetch-site") == "same-origin":
            return self.headers
        if origin not in self._allowed and _ANY not in self._allowed:
            _parsed("Origin", origin, origin)
            raise Forbidden(
                f"Requests from web pages of other servers are refused ('{excerpt(origin)}'); list "
                "the page's origin in allowed_origins to allow them."
            )
        return (
            *self.headers,
            ("access-control-allow-origin", origin) if origin in self._allowed else ANY_ORIGIN,
            ("access-control-expose-headers", _EXPOSED),
        )

    def _check_host(self, host: str, is_proxied: bool) -> None:
        if self._checks_hosts:
            name = host_name(host)
            if not (name in self._hosts or name == "localhost" or _is_address(name)):
                if is_proxied and not self._hosts:
                    return
                raise Forbidden(
                    f"Host is '{excerpt(host)}', which is no name of this server; list the name in "
                    "allowed_hosts to allow it."
                )
        if len(self.known_hosts) >= _MAX_KNOWN:
            self.known_hosts.clear()
            self.known_hosts |= {None, ""}
        self.known_hosts.add(host)


def preflight(methods: str, header: Callable[[str], str | None]) -> list[Header]:
    """The headers of the answer to a preflight, beside those of `Origins.check`.

    It allows the headers that the page asks for: what a listed page sends is not restricted.
    """
    wanted = header("access-control-request-headers") or ""
    return [
        ("access-control-allow-methods", methods),
        *([("access-control-allow-headers", wanted)] if _HEADER_NAMES.fullmatch(wanted) else []),
        ("access-control-max-age", _PREFLIGHT_S),
    ]


def check_origin(origin: str) -> None:
    """Raise ValueError if a value of allowed_origins is neither `*` nor an origin."""
    parsed = urlsplit(origin)
    _ = parsed.port
    if origin != _ANY and (
        parsed.scheme not in _DEFAULT_PORTS
        or not parsed.hostname
        or parsed.username is not None
        or _ANY in origin
        or origin != _normal(f"{parsed.scheme}://{parsed.netloc}")
    ):
        raise ValueError(
            f"'{excerpt(origin)}' must be SCHEME://HOST or SCHEME://HOST:PORT in lower case, or *"
        )


def check_host(host: str) -> None:
    """Raise ValueError if a value of allowed_hosts is neither `*` nor a name."""
    if host != _ANY and (_ANY in host or urlsplit(f"//{host}").hostname != host):
        raise ValueError(f"'{excerpt(host)}' must be a name in lower case, without a port, or *")


def host_name(host: str) -> str:
    """The name in a header Host, without its port. Raises Forbidden if it is malformed."""
    return (_parsed("Host", host, f"//{host}").hostname or "").removesuffix(".")


def _normal(origin: str) -> str:
    """An origin in lower case, without the default port of its scheme."""
    scheme, separator, host = origin.lower().partition("://")
    return scheme + separator + host.removesuffix(_DEFAULT_PORTS.get(scheme, "\0"))


def _first(header: str | None) -> str:
    return (header or "").partition(",")[0].strip()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _parsed(header: str, value: str, url: str) -> SplitResult:
    """The URL of a header. Raises Forbidden if its brackets or its port are malformed."""
    try:
        parsed = urlsplit(url)
        _ = parsed.port
    except ValueError:
        raise Forbidden(f"{header} '{excerpt(value)}' is malformed.") from None
    return parsed
