from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.http.http1.heads import (
    CHUNKED,
    MAX_HEAD,
    MAX_HEADERS,
    Head,
    Heads,
    Malformed,
    check_begin,
)

HOST = b"\r\nHost: a"


def head(line: bytes, *headers: bytes) -> Head:
    return Head(b"\r\n".join([line, b"Host: a", *headers]))


def test_a_head_says_what_is_asked_for() -> None:
    parsed = head(b"POST /a%20b/%C3%A9?c=%20&d HTTP/1.1", b"X-A:  1 2\t", b"x-a:3", b"Empty:")
    assert (parsed.method, parsed.path, parsed.query_string) == ("POST", "/a b/é", "c=%20&d")
    assert (parsed.http_version, parsed.authority, parsed.size) == ("1.1", "", 0)
    assert parsed.headers.get("x-a") == "1 2"
    assert parsed.headers.get_all("x-a") == ["1 2", "3"]
    assert parsed.headers.get_all("y") == []
    assert parsed.headers["empty"] == ""
    assert dict(parsed.headers.items()) == {"host": "a", "x-a": "1 2", "empty": ""}


@pytest.mark.parametrize(
    ("target", "path", "query", "authority"),
    [
        (b"/", "/", "", ""),
        (b"//a", "//a", "", ""),
        (b"/a?b?c", "/a", "b?c", ""),
        (b"/%ff", "/�", "", ""),
        (b"/%", "/%", "", ""),
        (b"/%2Fb%3Fc", "//b?c", "", ""),
        (b"/\xc3\xa9", "/é", "", ""),
        (b"http://a/a?b", "/a", "b", "a"),
        (b"HTTPS://A", "/", "", "A"),
        (b"http://a?b", "/", "b", "a"),
    ],
)
def test_targets(target: bytes, path: str, query: str, authority: str) -> None:
    parsed = head(b"GET " + target + b" HTTP/1.1")
    assert (parsed.path, parsed.query_string, parsed.authority) == (path, query, authority)


def test_a_target_with_a_host_has_that_of_the_header() -> None:
    for other in (b"other", b"a:1", b"u@a"):
        with pytest.raises(Malformed, match="two hosts"):
            head(b"GET http://" + other + b"/ HTTP/1.1")
    assert Head(b"GET http://other:1/ HTTP/1.0").authority == "other:1"


def test_an_asterisk_is_the_target_of_options_alone() -> None:
    assert head(b"OPTIONS * HTTP/1.1").path == "*"
    with pytest.raises(Malformed):
        head(b"GET * HTTP/1.1")


@pytest.mark.parametrize("target", [b"a", b"host:80", b"ftp://a/", b"http://", b"http:///a", b"?a"])
def test_other_targets_are_refused(target: bytes) -> None:
    with pytest.raises(Malformed, match="slash"):
        head(b"GET " + target + b" HTTP/1.1")


@pytest.mark.parametrize(
    ("version", "headers", "keeps_alive"),
    [
        (b"1.1", [], True),
        (b"1.1", [b"Connection: close"], False),
        (b"1.1", [b"Connection: Upgrade, Close"], False),
        (b"1.1", [b"Connection: upgrade", b"connection: close"], False),
        (b"1.1", [b"Connection: closed"], True),
        (b"1.0", [], False),
        (b"1.0", [b"Connection: Keep-Alive"], True),
        (b"1.0", [b"Connection: keep-alive, close"], False),
    ],
)
def test_whether_the_connection_is_kept(
    version: bytes, headers: list[bytes], keeps_alive: bool
) -> None:
    assert head(b"GET / HTTP/" + version, *headers).keeps_alive is keeps_alive


def test_a_client_of_http_1_0_needs_no_host_and_gets_no_continue() -> None:
    parsed = Head(b"GET / HTTP/1.0\r\nExpect: 100-continue")
    assert not parsed.expects_continue
    assert head(b"GET / HTTP/1.1", b"Expect: 100-Continue").expects_continue


@pytest.mark.parametrize(
    ("headers", "size"),
    [
        ([], 0),
        ([b"Content-Length: 0"], 0),
        ([b"Content-Length: 007"], 7),
        ([b"Content-Length: " + b"9" * 19], 10**19 - 1),
        ([b"Transfer-Encoding: Chunked"], CHUNKED),
    ],
)
def test_the_size_of_the_body(headers: list[bytes], size: int) -> None:
    assert head(b"POST / HTTP/1.1", *headers).size == size


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        ([b"Content-Length: 1", b"Content-Length: 1"], "more than one content-length"),
        ([b"Content-Length: 1", b"Transfer-Encoding: chunked"], "both"),
        ([b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"], "only be chunked"),
        ([b"Transfer-Encoding: chunked, identity"], "only be chunked"),
        ([b"Transfer-Encoding: \x0bchunked"], "control character"),
        ([b"Content-Length: 1_0"], "not a number"),
        ([b"Content-Length: \xb2"], "not a number"),
        ([b"Content-Length: 1,1"], "not a number"),
        ([b"Content-Length: " + b"9" * 20], "not a number"),
        ([b"Host: a"], "more than one host"),
    ],
)
def test_a_head_that_can_be_read_in_two_ways_is_refused(
    headers: list[bytes], sentence: str
) -> None:
    with pytest.raises(Malformed, match=sentence):
        head(b"POST / HTTP/1.1", *headers)


@pytest.mark.parametrize(
    "field", [b"a", b"", b": a", b"a : b", b" a: b", b"\ta: b", b"\xe9: a", b"a\xe9: b"]
)
def test_a_malformed_header_is_refused(field: bytes) -> None:
    with pytest.raises(Malformed, match="NAME: VALUE"):
        head(b"GET / HTTP/1.1", field)


@pytest.mark.parametrize("byte", [*range(9), *range(10, 32), 127])
def test_control_characters_are_refused_everywhere(byte: int) -> None:
    for line in (b"GET /%c HTTP/1.1", b"G%cT / HTTP/1.1"):
        with pytest.raises(Malformed):
            head(line % byte)
    with pytest.raises(Malformed):
        head(b"GET / HTTP/1.1", b"a: b%cc" % byte)


def test_there_are_limits() -> None:
    most = [b"a%d: b" % number for number in range(MAX_HEADERS - 1)]
    head(b"GET / HTTP/1.1", *most)
    with pytest.raises(Malformed, match="100 headers") as raised:
        head(b"GET / HTTP/1.1", *most, b"a: b")
    assert raised.value.status == 431
    with pytest.raises(Malformed, match="65536") as raised:
        check_begin(b"GET / HTTP/1.1\r\na: " + bytes(MAX_HEAD).replace(b"\0", b"a"))
    assert raised.value.status == 431


def test_equal_heads_are_parsed_once_and_long_ones_are_not_kept() -> None:
    heads = Heads()
    content = b"GET / HTTP/1.1" + HOST
    assert heads.parse(content) is heads.parse(bytes(bytearray(content)))
    long = content + b"\r\na: " + b"b" * 2000
    assert heads.parse(long) is not heads.parse(long)
    for number in range(1000):
        heads.parse(b"GET /%d HTTP/1.1" % number + HOST)
    assert len(heads._known) <= 256


@given(st.integers(0, 60))
def test_every_begin_of_a_head_may_go_on(end: int) -> None:
    check_begin(b"GET /a/b?c HTTP/1.1\r\nHost: localhost\r\nX: y\r\n"[:end])


@pytest.mark.parametrize(
    "content",
    [
        b"\0",
        b"\x16\x03\x01",
        b"GET  ",
        b"GET / X",
        b"GET / HTTP/1.1\n",
        b"GET\r\n",
        b"GET / HTTP/1.2\r\n",
        b"\xff",
    ],
)
def test_a_begin_that_leads_nowhere_is_refused_at_once(content: bytes) -> None:
    with pytest.raises(Malformed):
        check_begin(content)


FIELDS = st.lists(
    st.sampled_from(
        [
            b"Host: a",
            b"Content-Length: 3",
            b"Transfer-Encoding: chunked",
            b"Connection: close",
            b"a:b",
            b" a: b",
            b"a\n: b",
            b"Expect: 100-continue",
            b"\xff: a",
            b"a: \xff",
        ]
    )
    | st.binary(max_size=12),
    max_size=6,
)


@given(
    st.sampled_from([b"GET / HTTP/1.1", b"POST * HTTP/1.0", b"G\0 / HTTP/1.1"])
    | st.binary(max_size=30),
    FIELDS,
)
@example(b"GET / HTTP/1.1", [])
def test_whatever_is_accepted_has_one_reading(line: bytes, fields: list[bytes]) -> None:
    content = b"\r\n".join([line, *fields])
    with contextlib.suppress(Malformed):
        parsed = Head(content)
        names = [field.partition(b":")[0].lower() for field in content.split(b"\r\n")[1:]]
        assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
        assert names.count(b"host") == 1 or (parsed.http_version == "1.0" and b"host" not in names)
        assert content.count(b"\n") == len(names) == content.count(b"\r")
        assert (parsed.size == CHUNKED) == (b"transfer-encoding" in names)
