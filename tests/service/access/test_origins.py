from __future__ import annotations

import pytest

from service.access.origins import SAFE_HEADERS, Origins, check_host, check_origin, preflight
from service.core.errors import Forbidden

LISTED = "https://app.example"


def check(
    origins: Origins,
    host: str | None = "127.0.0.1:8000",
    scheme: str = "http",
    is_proxied: bool = False,
    **headers: str,
) -> dict[str, str]:
    """The headers of CORS for a request."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return dict(origins.check(host, scheme, named.get, is_proxied))


def test_programs_send_no_origin_and_are_answered() -> None:
    assert check(Origins()) == {}


@pytest.mark.parametrize(
    ("scheme", "host", "origin"),
    [
        ("http", "127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http", "localhost:8000", "http://localhost:8000"),
        ("http", "[::1]:8000", "http://[::1]:8000"),
        ("http", "example.org", "http://example.org"),
        ("http", "example.org:80", "http://example.org"),
        ("https", "example.org:443", "https://example.org"),
        ("https", "EXAMPLE.org", "https://example.org"),
    ],
)
def test_own_pages_are_answered_without_cors(scheme: str, host: str, origin: str) -> None:
    assert check(Origins(), host, scheme, origin=origin) == {}


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "https://127.0.0.1:8000",  # the scheme is part of an origin
        "http://127.0.0.1",
        "http://127.0.0.1:9000",
        "http://localhost:8000",
        "http://127.0.0.1:8000@evil.example",
        "http://127.0.0.1:8000.evil.example",
        "https://app.example.evil.example",
        "https://app.example:8443",
        "http://app.example",
        "null",
        "",
        "*",
        "http://[::1",
        "http://localhost:abc",
    ],
)
@pytest.mark.parametrize("allowed", [(), (LISTED,)])
def test_pages_of_others_are_refused(origin: str, allowed: tuple[str, ...]) -> None:
    with pytest.raises(Forbidden) as caught:
        check(Origins(allowed), origin=origin)
    assert origin in caught.value.message


def test_the_refusal_names_the_setting() -> None:
    with pytest.raises(Forbidden, match=r"'http://evil\.example'\); list .* in allowed_origins"):
        check(Origins(), origin="http://evil.example")


def test_a_listed_origin_is_answered_with_its_name_and_never_with_credentials() -> None:
    headers = check(Origins([LISTED]), origin=LISTED)
    assert headers["access-control-allow-origin"] == LISTED
    assert headers["vary"] == "origin"
    assert "x-request-id" in headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in headers


def test_every_answer_varies_by_origin_if_origins_are_listed() -> None:
    assert check(Origins([LISTED])) == {"vary": "origin"}
    assert check(Origins([LISTED]), origin="http://127.0.0.1:8000") == {"vary": "origin"}


@pytest.mark.parametrize("origin", ["http://evil.example", "null"])
def test_a_star_answers_every_page_without_naming_it(origin: str) -> None:
    origins = Origins(["*", LISTED])
    assert check(origins, origin=origin)["access-control-allow-origin"] == "*"
    assert check(origins, origin=LISTED)["access-control-allow-origin"] == LISTED


def test_the_browser_knows_a_page_behind_a_proxy_that_changes_host_and_scheme() -> None:
    own = {"origin": "https://mnist.example", "sec_fetch_site": "same-origin"}
    assert check(Origins(), **own) == {}
    for site in ("same-site", "cross-site", "none", "same-origin, cross-site"):
        with pytest.raises(Forbidden):
            check(Origins(), **{**own, "sec_fetch_site": site})


def test_a_trusted_proxy_says_what_its_client_called() -> None:
    said = {
        "origin": "https://mnist.example",
        "x_forwarded_host": "mnist.example, inner",
        "x_forwarded_proto": "https",
    }
    assert check(Origins(), is_proxied=True, **said) == {}
    with pytest.raises(Forbidden):
        check(Origins(), is_proxied=False, **said)
    with pytest.raises(Forbidden):
        check(Origins(), is_proxied=True, **{**said, "x_forwarded_proto": "http"})


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "localhost",
        "localhost:8000",
        "LOCALHOST:8000",
        "localhost.",
        "127.0.0.1:8000",
        "127.9.9.9",
        "[::1]:8000",
        "192.0.2.7:8000",
        "[2001:db8::1]",
        "listed.example:1",
    ],
)
def test_names_of_this_machine_addresses_and_listed_names_are_accepted(host: str | None) -> None:
    origins = Origins(hosts=["listed.example"], checks_hosts=True)
    assert check(origins, host) == {}
    assert host in origins.known_hosts


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "localhost@evil.example",
        "sub.listed.example",
        "127.1",
        "2130706433",
        "[v9.x]",
        "[::1",
        "::1]",
        "localhost:abc",
        "localhost:99999",
        "a b",
        ":8000",
    ],
)
def test_other_names_are_refused_again_and_again(host: str) -> None:
    origins = Origins(hosts=["listed.example"], checks_hosts=True)
    for _ in range(2):
        with pytest.raises(Forbidden, match="Host"):
            check(origins, host)
    assert host not in origins.known_hosts


def test_without_a_check_every_host_is_accepted() -> None:
    assert check(Origins(), "[::1") == {}
    assert check(Origins(hosts=["*"], checks_hosts=True), "evil.example") == {}


def test_a_trusted_proxy_may_pass_any_host_on_unless_names_are_listed() -> None:
    origins = Origins(checks_hosts=True)
    assert check(origins, "mnist.example", is_proxied=True) == {}
    with pytest.raises(Forbidden):  # others may not, although the proxy did
        check(origins, "mnist.example")
    with pytest.raises(Forbidden):
        check(Origins(hosts=["listed.example"]), "mnist.example", is_proxied=True)


def test_known_hosts_are_bounded() -> None:
    origins = Origins()
    for number in range(5000):
        check(origins, f"h{number}")
    assert {None, "", "h4999"} <= origins.known_hosts
    assert len(origins.known_hosts) <= 1024


def test_a_preflight_allows_the_methods_and_the_headers_that_are_asked_for() -> None:
    wanted = {"access-control-request-headers": "content-type, x-api-key"}
    headers = dict(preflight("GET, POST", wanted.get))
    assert headers["access-control-allow-methods"] == "GET, POST"
    assert headers["access-control-allow-headers"] == "content-type, x-api-key"
    assert 0 < int(headers["access-control-max-age"]) <= 3600


@pytest.mark.parametrize("wanted", ["", "a:b", "é", "x" * 2000])
def test_a_preflight_echoes_names_only(wanted: str) -> None:
    headers = dict(preflight("GET", {"access-control-request-headers": wanted}.get))
    assert "access-control-allow-headers" not in headers


@pytest.mark.parametrize("origin", ["*", LISTED, "http://localhost:3000", "http://[::1]:3000"])
def test_origins_of_the_setting(origin: str) -> None:
    check_origin(origin)


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "null",
        "app.example",
        "https://",
        "https://app.example/",
        "https://app.example/path",
        "https://App.example",
        "https://app.example:443",
        "https://*.example",
        "https://user@app.example",
        "https://app.example:x",
        "ftp://app.example",
        "http://[::1",
    ],
)
def test_what_is_no_origin_is_no_setting(origin: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        check_origin(origin)


@pytest.mark.parametrize("host", ["*", "app.example", "app"])
def test_names_of_the_setting(host: str) -> None:
    check_host(host)


@pytest.mark.parametrize(
    "host", ["", "app:80", "App", "http://app", "a/b", "user@app", "*.example"]
)
def test_what_is_no_name_is_no_setting(host: str) -> None:
    with pytest.raises(ValueError, match="lower case"):
        check_host(host)


def test_safe_headers_are_few_and_forbid_everything() -> None:
    headers = dict(SAFE_HEADERS)
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cross-origin-resource-policy"] == "same-origin"
