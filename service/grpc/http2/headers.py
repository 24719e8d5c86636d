"""The headers of a call: the request's, decoded; the response's and the trailers, encoded.

Sources: RFC 7541 (HPACK); RFC 9113 (HTTP/2), 8.1 to 8.3; gRPC over HTTP2 (PROTOCOL-HTTP2.md),
"Requests" and "Responses".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import hpack
from hpack.table import HeaderTable

from service.grpc.answering import Rpc, Unary
from service.grpc.http2.frames import COMPRESSION_ERROR, LARGEST_HEADER_LIST, ProtocolError

# Bytes of a header list as RFC 9113, 6.5.2, counts them. A longer list fails its call.
MAX_HEADER_LIST = 16 * 1024
# Bytes of a header block, both as sent and as a decoded list. A larger one ends the connection: it
# has to be decoded even if its call is refused, because later blocks depend on HPACK's table.
MAX_HEADER_BLOCK = 128 * 1024
_FIELD_OVERHEAD = 32  # bytes that RFC 9113, 6.5.2, adds for every field of a list
# Decoded blocks kept per connection, and the largest of them in bytes; a client repeats the same
# few.
_MAX_CACHED_BLOCKS = 64
_MAX_CACHED_BLOCK = 2 * 1024

_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])", re.ASCII)
_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
# Not from grpcio, whose import takes 8 MB of every worker.
_STATUS_CODES = {
    name: code
    for code, name in enumerate(
        (
            "OK",
            "CANCELLED",
            "UNKNOWN",
            "INVALID_ARGUMENT",
            "DEADLINE_EXCEEDED",
            "NOT_FOUND",
            "ALREADY_EXISTS",
            "PERMISSION_DENIED",
            "RESOURCE_EXHAUSTED",
            "FAILED_PRECONDITION",
            "ABORTED",
            "OUT_OF_RANGE",
            "UNIMPLEMENTED",
            "INTERNAL",
            "UNAVAILABLE",
            "DATA_LOSS",
            "UNAUTHENTICATED",
        )
    )
}
# Characters that grpc-message does not percent-encode: printable ASCII without the percent sign.
_UNQUOTED = " !\"#$&'()*+,/:;<=>?@[]^`{|}"

_CONTENT_TYPES = frozenset((b"application/grpc", b"application/grpc+proto"))
# RFC 9113, 8.2.2.
_CONNECTION_SPECIFIC = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)
# The names of a request, one per line: first the pseudo-headers (8.3), then names without uppercase
# letters, colons, spaces, control characters and bytes above ASCII (8.2.1).
_NAMES = re.compile(rb"(?::(?:method|scheme|path|authority)\n)*(?:[!-9;-@\[-~]+\n)*")
# Also 8.2.1. Spaces at the ends of a value, which it forbids as well, are accepted: gRPC lets a
# server strip them from metadata.
_FORBIDDEN_IN_VALUE = re.compile(rb"[\0\r\n]")


class Status(NamedTuple):
    """How a call ends; `code` is the name of a gRPC status code."""

    code: str
    message: str


class RetryLater(Status):
    """A status that says after how many seconds a client should try again.

    Many calls may share it: `fields` has what `trailers` has encoded, without what is the call's.
    """

    seconds: int
    fields = b""


OK = Status("OK", "")
_NO_TRACE: tuple[tuple[str, ...], tuple[str, ...]] = (), ()
_TOO_MUCH_METADATA = Status(
    "RESOURCE_EXHAUSTED", f"The metadata of the call is larger than {MAX_HEADER_LIST} bytes."
)
# The code of grpcio and gRPC-Go.
_MALFORMED_TIMEOUT = Status(
    "INTERNAL", "grpc-timeout is malformed; send 1 to 8 digits and a unit (H, M, S, m, u or n)."
)


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
    refusal: Status | None  # the end of a call whose headers the server cannot accept
    content_length: int | None  # bytes of DATA, if the header says how many
    is_malformed: bool  # not a request by RFC 9113, 8.1 to 8.3
    are_trailers: bool  # well-formed trailers by the same sections
    forwarded: tuple[str, ...]  # the values of x-forwarded-for, in order
    certificates: tuple[str, ...]  # those of x-forwarded-client-cert
    authorization: tuple[str, ...]  # the values of authorization
    api_keys: tuple[str, ...]  # the values of x-api-key
    trace: tuple[tuple[str, ...], tuple[str, ...]]  # the values of traceparent, and of tracestate


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
            decoded = list(self._decoder.decode(block, raw=True))
        except (hpack.HPACKError, UnicodeDecodeError) as error:
            # Not the error's own text, which has addresses of this process's memory.
            raise ProtocolError(COMPRESSION_ERROR, "a malformed header block") from error
        fields = dict(decoded)
        path = fields.get(b":path", b"").decode("latin-1")
        rpc = self._rpcs.get(path)
        request_id = fields.get(b"x-request-id")
        names = b"".join([name + b"\n" for name, _ in decoded])
        values = b" ".join([value for _, value in decoded])
        is_well_formed = bool(
            _NAMES.fullmatch(names)
            and not _FORBIDDEN_IN_VALUE.search(values)
            and _CONNECTION_SPECIFIC.isdisjoint(fields)
            and fields.get(b"te", b"trailers") == b"trailers"
        )
        pseudo_headers = names.count(b":")
        is_request = (
            is_well_formed
            # Each once, and :authority at most once (RFC 9113, 8.3.1).
            and path
            and b":method" in fields
            and b":scheme" in fields
            and pseudo_headers == 3 + (b":authority" in fields)
        )
        content_length = None
        if (length := fields.get(b"content-length")) is not None:
            if length.isdigit() and len(length) < 20:
                content_length = int(length)
            else:
                is_request = False
        status = 200
        content_type = fields.get(b"content-type", b"")
        if fields.get(b":method") != b"POST":
            status = 405
        elif (
            content_type not in _CONTENT_TYPES
            and content_type.partition(b";")[0].strip().lower() not in _CONTENT_TYPES
        ):
            status = 415
        refusal = None
        timeout = fields.get(b"grpc-timeout")
        seconds = None if timeout is None else read_timeout(timeout.decode("latin-1"))
        # One byte of each name and value is the separator.
        size = len(names) + len(values) + (_FIELD_OVERHEAD - 2) * len(decoded) + 1
        if size > MAX_HEADER_LIST:
            refusal = _TOO_MUCH_METADATA
        elif timeout is not None and seconds is None:
            refusal = _MALFORMED_TIMEOUT
        headers = RequestHeaders(
            rpc=rpc,
            is_unary=rpc is not None and isinstance(rpc.method, Unary),
            path=path,
            request_id=None if request_id is None else request_id.decode("latin-1"),
            timeout=seconds,
            encoding=fields.get(b"grpc-encoding", b"identity").decode("latin-1"),
            ends_with_error=fields.get(b"triton_grpc_error") == b"true",
            http_status=status,
            refusal=refusal,
            content_length=content_length,
            is_malformed=not is_request,
            are_trailers=is_well_formed and not pseudo_headers,
            forwarded=_values(decoded, b"x-forwarded-for"),
            certificates=(
                _values(decoded, b"x-forwarded-client-cert")
                if b"x-forwarded-client-cert" in fields
                else ()
            ),
            authorization=_values(decoded, b"authorization") if b"authorization" in fields else (),
            api_keys=_values(decoded, b"x-api-key") if b"x-api-key" in fields else (),
            trace=(_values(decoded, b"traceparent"), _values(decoded, b"tracestate"))
            if b"traceparent" in fields
            else _NO_TRACE,
        )
        if self._table.changed:
            self._cache.clear()
        elif len(self._cache) < _MAX_CACHED_BLOCKS and len(block) <= _MAX_CACHED_BLOCK:
            self._cache[block] = headers
        return headers


def _values(fields: list[Any], name: bytes) -> tuple[str, ...]:
    """The values of a header that may come several times, in order."""
    return tuple(value.decode("latin-1") for each, value in fields if each == name)


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
_GRPC_STATUS = {
    code: _literal(b"grpc-status", str(number).encode()) for code, number in _STATUS_CODES.items()
}
_SIZE_WITHOUT_MESSAGE = sum(
    _FIELD_OVERHEAD + len(name) + len(value)
    for name, value in (
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-accept-encoding", "identity,deflate,gzip"),
        ("x-request-id", ""),
        ("grpc-status", "16"),
        ("grpc-message", ""),
    )
)
_PUSHBACK = b"grpc-retry-pushback-ms"
_HALF_ESCAPE = re.compile(r"%.?\Z")
_REQUEST_ID = b"\0" + _length(len(b"x-request-id")) + b"x-request-id"


def trailers(status: Status, request_id: str, max_header_list: int = LARGEST_HEADER_LIST) -> bytes:
    """Return the header block that ends a call.

    A message is cut so that the list, with `RESPONSE_HEADERS`, is within `max_header_list`.
    """
    encoded = request_id.encode()
    block = _REQUEST_ID + _length(len(encoded)) + encoded
    if status.code == "OK":
        return _GRPC_STATUS["OK"] + block
    room = max_header_list - _SIZE_WITHOUT_MESSAGE - len(encoded)
    fields = _GRPC_STATUS[status.code]
    if isinstance(status, RetryLater):
        if status.fields and len(status.fields) + 2 * _FIELD_OVERHEAD <= room:
            return block + status.fields
        milliseconds = b"%d" % (status.seconds * 1000)
        fields += _literal(_PUSHBACK, milliseconds)
        room -= _FIELD_OVERHEAD + len(_PUSHBACK) + len(milliseconds)
    room = max(0, room)
    # No character takes less than a byte: what cannot fit is not encoded either.
    message = quote(status.message[:room], safe=_UNQUOTED)
    if len(message) > room:
        # Remove half an escape sequence and half a character at the end.
        message = quote(unquote(_HALF_ESCAPE.sub("", message[:room]), errors="ignore"), _UNQUOTED)
    fields += _literal(b"grpc-message", message.encode())
    if isinstance(status, RetryLater) and max_header_list == LARGEST_HEADER_LIST:
        status.fields = fields
    return block + fields


def http_error(status: int) -> bytes:
    """Return the header block that answers a request that is not gRPC."""
    return _literal(b":status", str(status).encode())
