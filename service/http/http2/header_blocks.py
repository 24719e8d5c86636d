"""HPACK for h2, in place of its own encoder and decoder, which took a third of a request's time.

Source: RFC 7541.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from hpack import Decoder, Encoder, HeaderTuple
from hpack.table import HeaderTable

# Decoded blocks kept per connection, some 3 KB each, and the largest in bytes and in headers. A
# client repeats the same few.
_MAX_KNOWN, _MAX_KNOWN_BYTES, _MAX_KNOWN_HEADERS = 4, 512, 32
# RFC 9113, 8.2.2.
_HTTP1_ONLY = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_SIZE_UPDATE = 0x20  # the first three bits of a dynamic table size update; here with the size 0


class _Table(HeaderTable):
    """HPACK's dynamic table; `has_changed` is set by every addition and eviction."""

    has_changed = False

    def add(self, name: bytes, value: bytes) -> None:
        self.has_changed = True
        super().add(name, value)

    def _shrink(self) -> None:
        self.has_changed = True
        super()._shrink()


class BlockDecoder(Decoder):
    """Decodes the header blocks of one connection.

    A block that leaves the table as it is stands for the same headers until the table changes, so
    it is decoded once and then looked up.
    """

    def __init__(self, max_header_list_size: int) -> None:
        super().__init__(max_header_list_size)
        self.header_table = self._table = _Table()
        self._known: dict[bytes, list[HeaderTuple]] = {}

    def decode(self, data: bytes, raw: bool = True) -> list[HeaderTuple]:
        """The headers as bytes. Nothing may change the list. Raises hpack.HPACKError."""
        headers = self._known.get(data)
        if headers is not None:
            return headers
        # A table that is emptied by its new size, at the begin of a block, does not say so.
        is_resized = bool(data) and data[0] & 0xE0 == _SIZE_UPDATE
        self._table.has_changed = is_resized
        headers = list(super().decode(data, raw=True))
        if self._table.has_changed:
            self._known.clear()
        elif 0 < len(data) <= _MAX_KNOWN_BYTES and len(headers) <= _MAX_KNOWN_HEADERS:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[data] = headers
        return headers


class BlockEncoder(Encoder):
    """Encodes the headers of answers without the dynamic table, so each field only once."""

    def __init__(self) -> None:
        super().__init__()
        self._has_to_resize = True

    @property
    def header_table_size(self) -> int:
        """What the client allows; none of it is used."""
        return 0

    @header_table_size.setter
    def header_table_size(self, value: int) -> None:
        # RFC 7541, 4.2: the next block has to say that the size is at most this.
        self._has_to_resize = True

    def encode(self, headers: Iterable[Any], huffman: bool = False) -> bytes:
        """One block, of names and values as bytes. Without a name, a value is encoded fields."""
        fields = [_field(name, value) if name else value for name, value in headers]
        if self._has_to_resize:
            self._has_to_resize = False
            fields.insert(0, bytes([_SIZE_UPDATE]))
        return b"".join(fields)


@lru_cache(1024)
def response_field(name: str, value: str) -> bytes:
    """A header of an answer, encoded; nothing for one that only HTTP/1 has.

    Raises ValueError for what is not latin-1 or has a line break.
    """
    raw_name, raw_value = name.lower().encode("latin-1"), value.encode("latin-1")
    if raw_name in _HTTP1_ONLY:
        return b""
    if b"\n" in raw_name + raw_value or b"\r" in raw_name + raw_value:
        raise ValueError("a header of the answer has a line break")
    return _field(raw_name, raw_value)


def _field(name: bytes, value: bytes) -> bytes:
    """A field that does not enter the table (RFC 7541, 6.1 and 6.2.2)."""
    index, values = HeaderTable.STATIC_TABLE_MAPPING.get(name, (0, {}))
    if value in values:
        return _integer(0x80, 7, values[value])
    begin = _integer(0, 4, index) if index else b"\0" + _integer(0, 7, len(name)) + name
    return begin + _integer(0, 7, len(value)) + value


def _integer(first: int, bits: int, number: int) -> bytes:
    """An integer whose first byte has other bits too (RFC 7541, 5.1)."""
    most = (1 << bits) - 1
    if number < most:
        return bytes([first | number])
    encoded = [first | most]
    number -= most
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])
