"""HTTP/1.1 itself: request lines, headers, lengths, chunks, encodings, methods and paths.

Sources: RFC 9110 (HTTP), RFC 9112 (HTTP/1.1). What is not HTTP is answered; its
connection ends.
"""

from __future__ import annotations

import gzip
import zlib

from tests.e2e.bad_inputs.case import Http, post, request

INFER = "/v2/models/mnist/infer"
OCTETS = "application/octet-stream"
PIXELS = bytes(784)
ZIPPED = gzip.compress(PIXELS, mtime=0)


def malformed(name: str, content: bytes, words: str, status: int = 400) -> Http:
    """Bytes that are not an HTTP request."""
    return Http(name, content, status, words, closes=True, is_request=False)


def line(text: str | bytes, headers: str = "") -> bytes:
    """A request of this line and these headers, beside Host and an empty body."""
    content = text if isinstance(text, bytes) else text.encode()
    return content + f"\r\nHost: localhost\r\nContent-Length: 0\r\n{headers}\r\n".encode()


REQUEST_LINES = [
    malformed("line of zeros", bytes(40), "not an HTTP/1 request"),
    malformed(
        "line of TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), "not an"
    ),
    malformed("line of one word", b"GET\r\n\r\n", "first line"),
    malformed("line without a version", b"GET /v2\r\n\r\n", "HTTP/1.1"),
    malformed("line with an unknown protocol", line("GET /v2 FTP/1.1"), "first line"),
    malformed("line with version 1.2", line("GET /v2 HTTP/1.2"), "first line"),
    malformed("line with version 3", line("GET /v2 HTTP/3.0"), "first line"),
    malformed("line with a lower case protocol", line("GET /v2 http/1.1"), "first line"),
    malformed("line with a space in the path", line("GET /v2 /models HTTP/1.1"), "first line"),
    malformed(
        "line with a control character in the path",
        line(b"GET /v2\x01 HTTP/1.1"),
        "control character",
    ),
    malformed(
        "line with a zero byte in the path", line(b"GET /v2\0 HTTP/1.1"), "control character"
    ),
    malformed("line with brackets for a method", line("G[E]T /v2 HTTP/1.1"), "first line"),
    malformed("line with an empty method", line(" /v2 HTTP/1.1"), "first line"),
    malformed("path without a slash", line("GET v2/models HTTP/1.1"), "slash"),
    malformed(
        "path of 2 million letters", line("GET /" + "a" * 2_000_000 + " HTTP/1.1"), "65536", 431
    ),
]


def with_header(name: str, header: bytes, words: str = "NAME: VALUE", status: int = 400) -> Http:
    content = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n" + header + b"\r\n\r\n"
    return malformed(name, content, words, status)


HEADERS = [
    with_header("header without a colon", b"Accept"),
    with_header("header without a name", b": x"),
    with_header("header with a space before its colon", b"Accept : x"),
    with_header("header with a zero byte in its name", b"Ac\0cept: x", "control character"),
    with_header("header with a zero byte in its value", b"Accept: x\0", "control character"),
    with_header("header with a control character", b"Accept: a\x01b", "control character"),
    with_header("header with a carriage return", b"Accept: a\rb", "control character"),
    with_header("header that continues on the next line", b"Accept: a\r\n b"),
    with_header("header with a line feed", b"Accept: a\nb", "control character"),
    with_header("header that ends with a line feed", b"A: a\nHost: b", "control character"),
    with_header("header that begins with a tab", b"\tAccept: x"),
    with_header("header that begins with a space", b" Accept: x"),
    with_header("header with a tab before its colon", b"Accept\t: x"),
    with_header("host twice", b"Host: localhost", "more than one host"),
    malformed("no host", b"GET /v2 HTTP/1.1\r\nAccept: x\r\n\r\n", "Host"),
    malformed("lines that end with a line feed", b"GET /v2 HTTP/1.1\nHost: a\n\n", "not an HTTP/1"),
    with_header("header with brackets in its name", b"Acc[e]pt: x"),
    with_header("header with UTF-8 in its name", "Éa: x".encode()),
    with_header("header of 2 million letters", b"A: " + b"a" * 2_000_000, "65536 bytes", 431),
    with_header(
        "headers, 500 of them", b"\r\n".join(b"A%d: b" % n for n in range(500)), "100 headers", 431
    ),
]


def sized(name: str, length: str) -> Http:
    """A request whose Content-Length is not the number that it must be."""
    content = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
    return malformed(name, content.encode() + PIXELS, "Content-Length")


def chunked(content: bytes, headers: str = "") -> bytes:
    start = (
        f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {OCTETS}\r\n{headers}"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    return start.encode() + content


def encoded(name: str, coding: str) -> Http:
    content = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: {coding}\r\n\r\n"
    return malformed(name, content.encode() + b"0\r\n\r\n", "Transfer-Encoding")


LENGTHS = [
    sized("length negative", "-1"),
    sized("length signed", "+784"),
    sized("length text", "many"),
    sized("length hexadecimal", "0x310"),
    sized("length fraction", "784.0"),
    sized("length empty", ""),
    sized("length above UINT64", "99999999999999999999999"),
    sized("length with a space", "7 84"),
    sized("length in a list of two", "784, 785"),
    malformed(
        "length twice, different",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 784\r\n"
        b"Content-Length: 785\r\n\r\n" + PIXELS,
        "more than one content-length",
    ),
    malformed(
        "length twice, equal",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 784\r\n"
        b"Content-Length: 784\r\n\r\n" + PIXELS,
        "more than one content-length",
    ),
    malformed(
        "length beside a transfer coding",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 784\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n" + PIXELS,
        "both",
    ),
    encoded("transfer coding gzip", "gzip"),
    encoded("transfer coding unknown", "xchunked"),
    encoded("transfer coding chunked, then gzip", "chunked, gzip"),
    encoded("transfer coding gzip, then chunked", "gzip, chunked"),
    encoded("transfer coding chunked twice", "chunked, chunked"),
    encoded("transfer coding empty", ""),
    encoded("transfer coding with a tab inside", "chun\tked"),
    malformed(
        "transfer coding in HTTP/1.0",
        b"POST /predict HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding",
    ),
]


def broken(name: str, chunk: bytes, words: str = "damaged") -> Http:
    """A chunked body whose damage ends the connection."""
    return Http(name, chunked(chunk), 400, words, closes=True)


CHUNKS = [
    broken("chunk size text", b"zz\r\n" + PIXELS),
    broken("chunk size negative", b"-1\r\n" + PIXELS),
    broken("chunk size empty", b"\r\n" + PIXELS),
    broken("chunk size above UINT64", b"f" * 17 + b"\r\n" + PIXELS),
    broken("chunk longer than its size", b"1\r\n" + PIXELS + b"\r\n0\r\n\r\n"),
    broken("chunk without an end of line", b"310\r\n" + PIXELS + b"0\r\n\r\n"),
    broken("chunk extension of 20,000 letters", b"1;" + b"a" * 20_000 + b"\r\n0\r\n0\r\n\r\n"),
    broken("chunk extension with a control character", b"1;a\x01\n0\r\n0\r\n\r\n"),
    Http(
        "chunked body above max_request_bytes",
        chunked(
            b"100000\r\n" + bytes(1 << 20) + b"\r\n" + b"780000\r\n" + bytes(0x780000) + b"\r\n"
        ),
        413,
        "max_request_bytes",
        closes=True,
    ),
    Http("chunked body of no bytes", chunked(b"0\r\n\r\n"), 400, "pixels"),
    Http("chunked body of a wrong size", chunked(b"1\r\na\r\n0\r\n\r\n"), 400, "pixels"),
    Http(
        "chunked trailers that were not declared",
        chunked(b"2\r\nab\r\n0\r\nA: b\r\n\r\n"),
        400,
        "pixels",
    ),
    broken("chunked trailer malformed", b"2\r\nab\r\n0\r\nA\r\n\r\n"),
    broken("chunked trailers of 20,000 letters", b"0\r\n" + b"A: b\r\n" * 5000 + b"\r\n"),
    broken("chunk size with a line feed alone", b"310\n" + PIXELS + b"\n0\n\n"),
    broken("chunk size with 0x", b"0x310\r\n" + PIXELS + b"\r\n0\r\n\r\n"),
    broken("chunk size with an underscore", b"3_10\r\n" + PIXELS + b"\r\n0\r\n\r\n"),
    Http(
        "body above max_request_bytes",
        request("POST", "/predict", headers={"Content-Type": OCTETS, "Content-Length": "8388609"}),
        413,
        "max_request_bytes",
        closes=True,
    ),
    Http(
        "body of 10^18 bytes",
        request("POST", INFER, headers={"Content-Length": str(10**18)}),
        413,
        "max_request_bytes",
        closes=True,
    ),
]


def inflated(name: str, coding: str, body: bytes, status: int, words: str) -> Http:
    """A body with a content coding."""
    return Http(name, post("/predict", body, OCTETS, Content_Encoding=coding), status, words)


ENCODINGS = [
    inflated("encoding br", "br", PIXELS, 415, "'br'"),
    inflated("encoding zstd", "zstd", PIXELS, 415, "'zstd'"),
    inflated("encoding compress", "compress", PIXELS, 415, "'compress'"),
    inflated("encoding gzip twice", "gzip, gzip", ZIPPED, 415, "gzip, gzip"),
    inflated("encoding of 4,000 letters", "e" * 4000, PIXELS, 415, "eee..."),
    inflated("gzip of plain bytes", "gzip", PIXELS, 400, "gzip"),
    inflated("gzip empty", "gzip", b"", 400, "pixels"),
    inflated("gzip cut short", "gzip", ZIPPED[:-9], 400, "gzip"),
    inflated("gzip with a wrong checksum", "gzip", ZIPPED[:-8] + bytes(8), 400, "gzip"),
    inflated("gzip with bytes behind it", "gzip", ZIPPED + b"more", 400, "gzip"),
    inflated("gzip as deflate", "deflate", ZIPPED, 400, "deflate"),
    inflated(
        "deflate without its zlib header", "deflate", zlib.compress(PIXELS)[2:-4], 400, "deflate"
    ),
    inflated("deflate with a dictionary", "deflate", b"\x78\xbb\0\0\0\1" + PIXELS, 400, "deflate"),
    inflated("gzip of 65 members", "gzip", gzip.compress(b"", mtime=0) * 65, 400, "64"),
    inflated(
        "gzip that inflates past the limit",
        "gzip",
        gzip.compress(bytes(9_000_000), mtime=0),
        413,
        "decompressed",
    ),
    inflated(
        "gzip that inflates to a gigabyte",
        "gzip",
        gzip.compress(gzip.compress(bytes(1 << 24), mtime=0) * 60, mtime=0),
        400,
        "pixels",
    ),
    Http(
        "gzip of JSON cut short",
        post(INFER, gzip.compress(b'{"inputs": [', mtime=0), Content_Encoding="gzip"),
        400,
        "JSON",
    ),
]


def wrong_method(name: str, method: str, path: str) -> Http:
    return Http(name, request(method, path), 405, method)


METHODS = [
    wrong_method("GET of predict", "GET", "/predict"),
    wrong_method("PUT of predict", "PUT", "/predict"),
    wrong_method("PATCH of predict", "PATCH", "/predict"),
    wrong_method("DELETE of predict", "DELETE", "/predict"),
    wrong_method("TRACE of predict", "TRACE", "/predict"),
    wrong_method("GET of infer", "GET", INFER),
    wrong_method("DELETE of a model", "DELETE", "/v2/models/mnist"),
    wrong_method("POST of the metadata", "POST", "/v2"),
    wrong_method("POST of the metrics", "POST", "/metrics"),
    wrong_method("POST of live", "POST", "/v2/health/live"),
    wrong_method("GET of load", "GET", "/v2/repository/models/mnist/load"),
    wrong_method("GET of the index", "GET", "/v2/repository/index"),
    wrong_method("unknown method", "BREW", "/predict"),
    Http("method in lower case", request("post", "/predict"), 501, "post"),
    Http("method in mixed case", request("Get", "/v2"), 501, "Get"),
    wrong_method("method of 100 letters", "M" * 100, "/predict"),
    wrong_method("PRI outside of HTTP/2", "PRI", "/predict"),
]


def no_route(name: str, path: str, method: str = "GET") -> Http:
    return Http(name, request(method, path), 404, "endpoint")


PATHS = [
    no_route("path unknown", "/nowhere"),
    no_route("path in upper case", "/V2"),
    no_route("path of another protocol", "/v1/models/mnist:predict", "POST"),
    no_route("path with two slashes", "//v2"),
    no_route("path with three slashes", "///v2/repository/models/mnist/load", "POST"),
    no_route("path with an empty model", "/v2/models//infer", "POST"),
    no_route("path of dots", "/v2/../metrics"),
    no_route("path of dots, escaped", "/%2e%2e/%2e%2e/etc/passwd"),
    no_route("path with an escaped slash", "/v2/repository/models/..%2f..%2fetc/load", "POST"),
    no_route("path that is not UTF-8", "/%ff%fe"),
    no_route("path of a zero byte", "/%00"),
    no_route("path with half an escape", "/%"),
    no_route("path of a semicolon", "/predict;a=b", "POST"),
    no_route("path of a backslash", "\\v2".replace("\\", "/\\")),
    no_route("path below a route", "/v2/health/live/now"),
    no_route("path of an asterisk", "*", "OPTIONS"),
    no_route("generate, which is for text", "/v2/models/mnist/generate", "POST"),
    no_route("path of the repository's name", "/v2/repository/models/models/mnist/load", "POST"),
]

CASES: list[Http] = [*(*REQUEST_LINES, *HEADERS, *LENGTHS, *CHUNKS, *ENCODINGS, *METHODS, *PATHS)]
