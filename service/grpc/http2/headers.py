"""The headers of a call: the request's, decoded; the response's and the trailers, encoded.

Sources: RFC 7541 (HPACK); gRPC over HTTP2 (PROTOCOL-HTTP2.md), "Requests" and "Responses".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote

import grpc
import hpack
from hpack.table import HeaderTable

from service.grpc.answering import Rpc, Unary
from service.grpc.http2.frames import COMPRESSION_ERROR, ProtocolError

MAX_HEADER_BLOCK = 16 * 1024  # bytes, both as sent and once decoded
# Decoded blocks kept per connection; a client repeats the same few.
_MAX_CACHED_BLOCKS = 64

_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])", re.ASCII)
_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_STATUS_CODES: dict[str, int] = {code.name: code.value[0] for code in grpc.StatusCode}
# Characters that grpc-message does not percent-encode: printable ASCII without the percent sign.
_UNQUOTED = " !\"#$&'()*+,/:;<=>?@[]^`{|}"


class RequestHeaders(NamedTuple):
    """The request headers that the server uses."""

    rpc: Rpc | None  # None if no method has this path
    is_unary: bool
    path: str
    request_id: str | None
    timeout: float | None  # seconds, from grpc-timeout
    encoding: str  # of messages flagged as compressed
    ends_with_error: bool  # Triton's triton_grpc_error: a failed request ends its stream
    http_status: int  # 405 or 415 if this is not a gRPC request, else 200


class Status(NamedTuple):
    """How a call ends; `code` is the name of a gRPC status code."""

    code: str
    message: str


OK = Status("OK", "")


class HeaderDecoder:
    """Decodes the header blocks of one connection, in the order in which they arrive.

    A block that leaves HPACK's table unchanged decodes to the same headers until the table changes,
    so it is decoded once and then looked up.
    """

    def __init__(self, rpcs: Mapping[str, Rpc]) -> None:
        self._rpcs = rpcs
        self._decoder = hpack.Decoder(max_header_list_size=MAX_HEADER_BLOCK)
        self._decoder.header_table = self._table = _HeaderTable()
        self._cache: dict[bytes, RequestHeaders] = {}

    def decode(self, block: bytes) -> RequestHeaders:
        """Raises ProtocolError if the block is malformed: later blocks cannot be decoded either."""
        if headers := self._cache.get(block):
            return headers
        self._table.changed = False
        try:
            decoded = dict(self._decoder.decode(block, raw=True))
        except (hpack.HPACKError, UnicodeDecodeError) as error:
            raise ProtocolError(COMPRESSION_ERROR, str(error)) from error
        fields = {bytes(name): bytes(value).decode("latin-1") for name, value in decoded.items()}
        path = fields.get(b":path", "")
        rpc = self._rpcs.get(path)
        status = 200
        if fields.get(b":method") != "POST":
            status = 405
        elif not fields.get(b"content-type", "").startswith("application/grpc"):
            status = 415
        headers = RequestHeaders(
            rpc=rpc,
            is_unary=rpc is not None and isinstance(rpc.method, Unary),
            path=path,
            request_id=fields.get(b"x-request-id"),
            timeout=read_timeout(fields.get(b"grpc-timeout", "")),
            encoding=fields.get(b"grpc-encoding", "identity"),
            ends_with_error=fields.get(b"triton_grpc_error") == "true",
            http_status=status,
        )
        if self._table.changed:
            self._cache.clear()
        elif len(self._cache) < _MAX_CACHED_BLOCKS:
            self._cache[block] = headers
        return headers


class _HeaderTable(HeaderTable):
    """HPACK's dynamic table; `changed` is set by every addition and eviction."""

    changed = False

    def add(self, name: bytes, value: bytes) -> None:
        self.changed = True
        super().add(name, value)

    def _shrink(self) -> None:
        self.changed = True
        super()._shrink()


def read_timeout(text: str) -> float | None:
    """Return the seconds of a grpc-timeout header, or None if it is missing or malformed."""
    match = _TIMEOUT.fullmatch(text)
    return int(match[1]) * _SECONDS[match[2]] if match else None


def _literal(name: bytes, value: bytes) -> bytes:
    """Encode a field without HPACK's tables (RFC 7541, 6.2.2), so no state has to be shared."""
    return b"\0" + _length(len(name)) + name + _length(len(value)) + value


def _length(size: int) -> bytes:
    """Encode an integer with a 7-bit prefix (RFC 7541, 5.1)."""
    if size < 0x7F:
        return bytes([size])
    encoded, size = [0x7F], size - 0x7F
    while size >= 0x80:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*encoded, size])


_STATUS_200 = b"\x88"  # index 8 of HPACK's static table
RESPONSE_HEADERS = (
    _STATUS_200
    + _literal(b"content-type", b"application/grpc")
    + _literal(b"grpc-accept-encoding", b"identity,deflate,gzip")
)
_GRPC_STATUS_OK = _literal(b"grpc-status", b"0")
_REQUEST_ID = b"\0" + _length(len(b"x-request-id")) + b"x-request-id"


def trailers(status: Status, request_id: str) -> bytes:
    """Return the header block that ends a call."""
    encoded = request_id.encode()
    block = _REQUEST_ID + _length(len(encoded)) + encoded
    if status.code == "OK":
        return _GRPC_STATUS_OK + block
    block += _literal(b"grpc-status", str(_STATUS_CODES[status.code]).encode())
    return block + _literal(b"grpc-message", quote(status.message, safe=_UNQUOTED).encode())


def http_error(status: int) -> bytes:
    """Return the header block that answers a request that is not gRPC."""
    return _literal(b":status", str(status).encode())
