"""The headers of calls, decoded once for each block of them that a connection repeats.

Source: RFC 7541 (HPACK); gRPC over HTTP2, "Requests".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import hpack
from hpack.table import HeaderTable

from service.grpc.answering import Rpc
from service.grpc.http2 import frames as wire
from service.grpc.http2.frames import ConnectionFailed

MAX_HEADER_BLOCK = 16 * 1024  # bytes, as they are sent and once decoded
# Blocks that are kept decoded; clients repeat the same few.
_KEPT = 64


class Head(NamedTuple):
    """The headers of a call, as far as they matter."""

    rpc: Rpc | None
    path: str
    request_id: str | None
    timeout: float | None
    encoding: str
    ends_with_error: bool
    http_error: int = 0


class Heads:
    """Decodes the header blocks of one connection, in the order in which they come."""

    def __init__(self, rpcs: Mapping[str, Rpc]) -> None:
        self._rpcs = rpcs
        self._decoder = hpack.Decoder(max_header_list_size=MAX_HEADER_BLOCK)
        self._decoder.header_table = self._table = _HeaderTable()
        self._kept: dict[bytes, Head] = {}

    def of(self, block: bytes) -> Head:
        """The headers of a block; kept for the next like it, unless it changed HPACK's table.

        Raises ConnectionFailed if it is no HPACK: what comes after it cannot be decoded either.
        """
        if head := self._kept.get(block):
            return head
        self._table.changed = False
        try:
            fields = dict(self._decoder.decode(block, raw=True))
        except (hpack.HPACKError, UnicodeDecodeError) as error:
            raise ConnectionFailed(wire.COMPRESSION_ERROR, str(error)) from error
        head = self._head({bytes(k): bytes(v).decode("latin-1") for k, v in fields.items()})
        if self._table.changed:
            self._kept.clear()
        elif len(self._kept) < _KEPT:
            self._kept[block] = head
        return head

    def _head(self, fields: dict[bytes, str]) -> Head:
        path = fields.get(b":path", "")
        error = 0
        if fields.get(b":method") != "POST":
            error = 405
        elif not fields.get(b"content-type", "").startswith("application/grpc"):
            error = 415
        return Head(
            self._rpcs.get(path),
            path,
            fields.get(b"x-request-id"),
            wire.read_timeout(fields.get(b"grpc-timeout", "")),
            fields.get(b"grpc-encoding", "identity"),
            fields.get(b"triton_grpc_error") == "true",
            error,
        )


class _HeaderTable(HeaderTable):
    """HPACK's table, which tells whether it was changed."""

    changed = False

    def add(self, name: bytes, value: bytes) -> None:
        self.changed = True
        super().add(name, value)

    def _shrink(self) -> None:
        self.changed = True
        super()._shrink()
