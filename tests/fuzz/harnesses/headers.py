"""Header blocks (HPACK), metadata, grpc-timeout, and the trailers that answer them.

The first byte chooses: header blocks one after the other, a list of odd fields, a timeout, or the
message of a status.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import hpack

from service.grpc.answering import Rpc, Unary
from service.grpc.http2.frames import LARGEST_HEADER_LIST, ProtocolError
from service.grpc.http2.headers import (
    MAX_HEADER_LIST,
    RESPONSE_HEADERS,
    HeaderDecoder,
    Status,
    read_timeout,
    trailers,
)
from tests.fuzz.fields import Fields

_PATH = "/s/Method"
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


async def _unused(*_: object) -> None: ...


_RPCS = {_PATH: Rpc(Unary("unary", _unused), None, None)}
_REQUEST = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", _PATH.encode()),
    (b":authority", b"a"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]
_NAMES = (
    *(b":method", b":scheme", b":path", b":authority", b":status", b"te", b"content-type"),
    *(b"content-length", b"grpc-timeout", b"grpc-encoding", b"x-request-id", b"connection"),
    *(b"triton_grpc_error", b"Upper", b"", b"a b", b"n\xc3\xa9", b"cookie", b"transfer-encoding"),
)
_VALUES = (
    *(b"", b"POST", b"GET", _PATH.encode(), b"/", b"http", b"trailers", b"application/grpc"),
    *(b"application/grpc+proto", b"application/grpc; a=b", b"text/html", b"1S", b"99999999H"),
    *(b"100000000n", b"-1S", b"0", b"7", b"18446744073709551616", b"gzip", b"a\r\nb", b"\0"),
    *(b"v" * 200, b"true", b" x ", b"\xff"),
)


def _block(fields: list[Any]) -> bytes:
    return bytes(hpack.Encoder().encode(fields))


SEEDS = [
    b"\0" + bytes([0]) + _block(_REQUEST),
    b"\0" + bytes([len(_block(_REQUEST))]) + _block(_REQUEST) * 2,
    b"\0\1\x82\x20\x3f\xe1\x1f\x40\x01a\x01b\xbe\xbf",
    b"\1" + bytes(range(60)),
    b"\1\x02\x09\x0d",
    *(b"\2" + text for text in (b"1S", b"99999999H", b"123456789n", b"0u", b"", b"1", b"S", b"1s")),
    *(b"\3" + text.encode() for text in ("x", "\0\xff\0plain", "\3\0é\r\n%25", "\1\0😀 a%b")),
]


def check(data: bytes) -> None:
    fields = Fields(data)
    fields.of((_check_blocks, _check_list, _check_timeout, _check_status))(fields)


def _check_blocks(fields: Fields) -> None:
    """Several blocks on one connection, any bytes."""
    ours, reference = HeaderDecoder(_RPCS), hpack.Decoder(max_header_list_size=128 * 1024)
    size = fields.byte()
    while fields.left > 0:
        block = fields.take(size) if size else fields.rest()
        try:
            headers = ours.decode(block)
        except ProtocolError:
            return
        _compare(headers, list(reference.decode(block, raw=True)))


def _check_list(fields: Fields) -> None:
    """A request with some fields removed, changed or added; twice, the second from the cache."""
    pairs = list(_REQUEST)
    for _ in range(fields.byte() % 6):
        action, at = fields.byte(), fields.byte() % (len(pairs) + 1)
        pair = (
            fields.of(_NAMES) if action % 8 else fields.take(fields.byte() % 8),
            fields.of(_VALUES) if action % 16 else fields.take(fields.byte() % 64),
        )
        pairs[at : at + action // 16 % 2] = [pair] * (action // 32)
    ours, block = HeaderDecoder(_RPCS), bytes(hpack.Encoder().encode([(*p, True) for p in pairs]))
    headers = ours.decode(block)
    _compare(headers, pairs)
    assert ours.decode(block) == headers


def _compare(headers: Any, pairs: list[Any]) -> None:
    """The decoded headers against the rules of RFC 9113 and gRPC, written down a second time."""
    pairs = [(bytes(name), bytes(value)) for name, value in pairs]
    names = [name for name, _ in pairs]
    last = dict(pairs)
    pseudo = [name for name in names if name.startswith(b":")]
    well_formed = (
        names[: len(pseudo)] == pseudo
        and set(pseudo) <= {b":method", b":scheme", b":path", b":authority"}
        and all(re.fullmatch(rb"[!-9;-@\[-~]+", name) for name in names[len(pseudo) :])
        and not any(byte in value for _, value in pairs for byte in b"\0\r\n")
        and not {b"connection", b"proxy-connection", b"keep-alive", b"upgrade"} & set(names)
        and b"transfer-encoding" not in names
        and last.get(b"te", b"trailers") == b"trailers"
    )
    assert headers.are_trailers == (well_formed and not pseudo)
    required = {b":method", b":scheme", b":path"}
    length = last.get(b"content-length")
    is_request = (
        well_formed
        and required <= set(pseudo)
        and len(pseudo) == len(set(pseudo))
        and last[b":path"] != b""
        and (length is None or re.fullmatch(rb"[0-9]{1,19}", length) is not None)
    )
    assert headers.is_malformed == (not is_request), pairs
    assert headers.content_length is None or headers.content_length >= 0
    assert headers.path == last.get(b":path", b"").decode("latin-1")
    assert (headers.rpc is not None) == (headers.path == _PATH)
    too_large = sum(len(name) + len(value) + 32 for name, value in pairs) > MAX_HEADER_LIST
    timeout = last.get(b"grpc-timeout")
    if too_large:
        assert headers.refusal.code == "RESOURCE_EXHAUSTED"
    elif timeout is not None and re.fullmatch(rb"[0-9]{1,8}[HMSmun]", timeout) is None:
        assert headers.refusal.code == "INTERNAL"
    else:
        assert headers.refusal is None
    assert headers.http_status in (200, 405, 415)
    assert (headers.http_status == 405) == (last.get(b":method") != b"POST")


def _check_timeout(fields: Fields) -> None:
    text = fields.rest().decode("latin-1")
    seconds = read_timeout(text)
    if re.fullmatch("[0-9]{1,8}[HMSmun]", text) is None:
        assert seconds is None
    else:
        assert seconds == int(text[:-1]) * _UNITS[text[-1]]


def _check_status(fields: Fields) -> None:
    """A message of any text in trailers that the peer limits to any size."""
    limit = LARGEST_HEADER_LIST if fields.byte() % 2 else fields.byte() * fields.byte()
    message = fields.rest().decode("utf-8", "replace")
    block = trailers(Status("INTERNAL", message), "an-id", limit)
    decoded = hpack.Decoder(max_header_list_size=1 << 24).decode(RESPONSE_HEADERS + block)
    sent = dict(decoded)
    assert sent["grpc-status"] == "13"
    assert sent["x-request-id"] == "an-id"
    assert re.fullmatch(r"[ -~]*", sent["grpc-message"])
    assert message.startswith(unquote(sent["grpc-message"], errors="strict"))
    if limit == LARGEST_HEADER_LIST:
        assert unquote(sent["grpc-message"]) == message
    else:
        size = sum(32 + len(name) + len(value) for name, value in decoded)
        assert size <= limit or sent["grpc-message"] == ""
