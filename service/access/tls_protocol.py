"""TLS between a socket and a protocol of HTTP, which takes this for its transport.

asyncio and uvloop have TLS of their own, but they make a protocol only when its handshake is done.
Until then its connection would be in no limit. Here it has its place in the pool from the moment
that it is accepted: the time for the preface (header_timeout) covers the handshake, a newcomer
displaces it, and its bytes are bounded by what OpenSSL accepts of a handshake (some 128 KB).
Bytes that are encrypted are in the buffer of the socket's transport, so its flow control holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Collection
from typing import Any, Protocol

from service.access.tls import client_name

log = logging.getLogger(__name__)

_RECORD = 16 * 1024  # bytes, the most in one record of TLS


class NoProtocol(ssl.SSLError):
    """The client did not offer a protocol of ours by ALPN."""

    reason = "NO_APPLICATION_PROTOCOL"


class Inner(Protocol):
    """What speaks inside of TLS; `is_open` once its handshake is done."""

    is_open: bool
    client_name: str  # of the client's verified certificate, if it has one

    def connection_made(self, transport: Any, /) -> None: ...
    def connection_lost(self, error: Exception | None, /) -> None: ...
    def data_received(self, data: bytes, /) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def handshake_failed(self) -> None:
        """The connection ends before the first byte of the protocol inside."""


class TlsProtocol(asyncio.BufferedProtocol):
    """The server's side of one TLS connection; ALPN must choose one of `protocols`.

    None stands for a client without ALPN.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        inner: Inner,
        protocols: Collection[str | None],
        buffer: memoryview,
    ) -> None:
        """`buffer` is where bytes arrive; connections share it, as each takes its own out at once.

        So its size bounds what is read, decrypted and held of a connection whose requests wait.
        """
        self._buffer = buffer
        self._inner = inner
        self._protocols = protocols
        inner.is_open = False
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._is_open = False  # the handshake is done
        self._is_shut = False  # nothing more is sent, and what comes is ignored
        self._early = bytearray()  # to send after the handshake: SETTINGS, GOAWAY

    # Called by asyncio.

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._inner.connection_made(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._inner.connection_lost(error)
        # Some 50 KB, which cycles would keep until the garbage collection.
        del self._inner, self._tls, self._incoming, self._outgoing

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def get_buffer(self, size_hint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        self.data_received(self._buffer[:count])

    def data_received(self, data: bytes | memoryview) -> None:
        """Decrypt what has arrived, and pass it on."""
        if self._is_shut:
            return
        self._incoming.write(data)
        records: list[bytes] = []
        is_end = False
        try:
            if not self._is_open:
                self._tls.do_handshake()
                self._open()
            while not is_end and (self._incoming.pending or self._tls.pending()):
                record = self._tls.read(_RECORD)
                records.append(record)
                is_end = not record  # close_notify
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            is_end = True
        except ssl.SSLError as error:
            # The reason is one of OpenSSL's own names: no text of the client gets into the log.
            log.debug("A connection ends by an error of TLS: %s.", error.reason)
            if not self._is_open:
                self._inner.handshake_failed()
            is_end = True
        self._send()  # also an alert
        if records and not self._is_shut:
            self._inner.data_received(records[0] if len(records) == 1 else b"".join(records))
        if is_end:
            self._is_shut = True
            self._transport.close()

    def _open(self) -> None:
        """Say what had to wait for the handshake. Raises NoProtocol."""
        if self._tls.selected_alpn_protocol() not in self._protocols:
            raise NoProtocol
        self._is_open = self._inner.is_open = True
        self._inner.client_name = client_name(self._tls.getpeercert())
        if self._early:
            self.write(self._early)
            self._early = bytearray()

    def _send(self) -> None:
        if self._outgoing.pending:
            self._transport.write(self._outgoing.read())

    # Called by the protocol, for which this is the transport.

    def write(self, data: bytes | bytearray) -> None:
        if not self._is_open:
            self._early += data
        elif not self._is_shut:
            view = memoryview(data)
            while view:
                view = view[self._tls.write(view) :]
            self._send()

    def write_eof(self) -> None:
        """End our half: with close_notify, or at once if there is no TLS yet."""
        self._is_shut = True
        if not self._is_open:
            self._transport.close()
            return
        with contextlib.suppress(ssl.SSLError):  # it wants to read the client's close_notify
            self._tls.unwrap()
        self._send()
        self._transport.write_eof()

    def set_protocol(self, inner: Inner) -> None:
        """Let another protocol speak inside of TLS from now on."""
        inner.is_open, inner.client_name = self._inner.is_open, self._inner.client_name
        self._inner = inner

    def close(self) -> None:
        self._transport.close()

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return bool(self._transport.is_closing())

    def get_write_buffer_size(self) -> int:
        return int(self._transport.get_write_buffer_size())

    def get_extra_info(self, name: str) -> Any:
        return self._transport.get_extra_info(name)

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def abort(self) -> None:
        self._transport.abort()
