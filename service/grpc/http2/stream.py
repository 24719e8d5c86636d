"""One call on an HTTP/2 connection: its state, its messages and its flow-control windows.

A gRPC message is a prefix (a flag that says whether the message is compressed, and its length) and
its bytes. DATA frames split the messages anywhere.

Sources: RFC 9113 (HTTP/2), 5.1 and 5.2; gRPC over HTTP2 (PROTOCOL-HTTP2.md).
"""

from __future__ import annotations

import struct
from collections import deque

from service.access.gate import Identity
from service.core.budget import Claim
from service.core.errors import RequestTooLarge
from service.grpc.http2 import frames
from service.grpc.http2.frames import ProtocolError, StreamError, copy_slice
from service.grpc.http2.headers import RESPONSE_HEADERS, RequestHeaders, Status, trailers

# Bytes that a peer may send on one stream before it must wait for WINDOW_UPDATE. A message that
# fits needs no permission; for a larger one, `Connection` claims room first. At HTTP/2's default of
# 64 KB, a peer had nothing left to send when its WINDOW_UPDATE came: the wait was 4 % of the time
# of a message of 400 KB to a fast model.
STREAM_WINDOW = 192 * 1024
MESSAGE_PREFIX = struct.Struct(">BI")
# Bytes of a part of a message that is kept as it is: an object takes some 40 more.
_LEAST_PART = 1024

# The flag of the prefix (0 is uncompressed) and the content.
Message = tuple[int, bytes]


class State:
    """The states of RFC 9113, 5.1, that a stream of a client can be in.

    An idle stream has no object yet; the reserved states belong to server push, which gRPC lacks.
    These are plain strings because reading a member of an Enum takes 77 ns instead of 22, and every
    call does so about ten times.
    """

    OPEN = "open"
    HALF_CLOSED_REMOTE = "half-closed (remote)"  # the peer has sent END_STREAM
    HALF_CLOSED_LOCAL = "half-closed (local)"  # the trailers are sent before the peer's END_STREAM
    CLOSED = "closed"


class PeerSettings:
    """What the peer's SETTINGS say, in bytes; one object for all streams of a connection."""

    __slots__ = ("initial_window", "max_frame", "max_header_list")

    def __init__(self, initial_window: int = frames.DEFAULT_WINDOW) -> None:
        self.initial_window = initial_window
        self.max_frame = frames.DEFAULT_FRAME
        self.max_header_list = frames.LARGEST_HEADER_LIST


class CallFailed(Exception):
    """The peer's messages break the rules of gRPC or a limit; `status` ends the call."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.status = Status(code, message)


class Stream:
    """One call. It turns DATA into messages and messages into DATA.

    `opened_at` and `deadline` are seconds of the connection's clock. `status` is None until the
    result of the call is known; after that, data from the peer is dropped.
    """

    __slots__ = (
        "_buffer",
        "_content_left",
        "_gathered",
        "_headers_sent",
        "_parts",
        "_peer",
        "_receive_window",
        "_sent",
        "_unread",
        "answer",
        "claim",
        "counted",
        "deadline",
        "headers",
        "holds",
        "id",
        "identity",
        "opened_at",
        "output",
        "request_id",
        "send_credit",
        "state",
        "status",
    )

    def __init__(
        self,
        stream_id: int,
        *,
        headers: RequestHeaders,
        request_id: str,
        opened_at: float,
        peer: PeerSettings,
    ) -> None:
        self.id = stream_id
        self.headers = headers
        self.request_id = request_id
        self.identity: Identity | None = None  # None if everyone may do everything
        self.opened_at = opened_at
        self.deadline = None if headers.timeout is None else opened_at + headers.timeout
        self.state = State.OPEN
        self.status: Status | None = None
        # Receiving: what has arrived of the next message. Of a large one of a unary call, the
        # buffer has the prefix, and `_gathered` bytes are in parts, which are copied once: at the
        # end.
        self._buffer: bytes | bytearray = b""
        self._parts: list[bytes | bytearray] | None = None
        self._gathered = 0
        self._content_left = headers.content_length  # bytes that have to arrive, if known
        self._unread = 0  # messages of a streaming call that it has not read
        self._receive_window = STREAM_WINDOW
        # What the request holds of the worker's budget: the claim of the message that arrives, and
        # of a unary call until its end; bytes that are counted; and of each message of a streaming
        # call that is not yet answered, its claim or its part of the counted bytes.
        self.claim: Claim | None = None
        self.counted = 0
        self.holds: deque[Claim | int] = deque()
        self.answer: Claim | None = None  # of output that waits for a window
        # Sending: messages with their prefixes, and how many of these bytes are sent; the rest
        # waits for a window.
        self.output = b""
        self._sent = 0
        # The window is the peer's initial window and this credit: what WINDOW_UPDATE granted less
        # what was sent. A change of the initial window thus changes nothing here.
        self._peer = peer
        self.send_credit = 0
        self._headers_sent = False

    # From the peer.

    def receive(self, content: bytes, frame_size: int, end_stream: bool) -> None:
        """Take the content of a DATA frame. Flow control counts its size with the padding.

        Raises ProtocolError if the frame exceeds the window, and StreamError if the request has
        another length than its content-length says.
        """
        if self._content_left is not None and self.status is None:
            self._content_left -= len(content)
            if self._content_left < 0 or (end_stream and self._content_left):
                raise StreamError(frames.PROTOCOL_ERROR, "not as long as content-length says")
        if end_stream:
            self.state = State.HALF_CLOSED_REMOTE
        self._receive_window -= frame_size
        if self._receive_window < 0:
            raise ProtocolError(frames.FLOW_CONTROL_ERROR, "more data than allowed")
        if self.status is not None:
            return
        if self._parts is not None:
            self._gathered += len(content)
            if len(content) >= _LEAST_PART:
                self._parts.append(content)
            elif isinstance(last := self._parts[-1], bytearray):
                last += content
            else:
                self._parts.append(bytearray(content))
            return
        if not self._buffer:
            self._buffer = content
            return
        if isinstance(self._buffer, bytes):
            self._buffer = bytearray(self._buffer)
        self._buffer += content

    def take_message(self, max_message: int) -> Message | None:
        """Return the one message of a unary call once END_STREAM has followed it.

        Raises CallFailed if it is larger than `max_message` bytes, or not alone, or incomplete.
        """
        buffer, is_longer = self._buffer, False
        ended = self.state == State.HALF_CLOSED_REMOTE
        if len(buffer) >= MESSAGE_PREFIX.size:
            flag, size = MESSAGE_PREFIX.unpack_from(buffer)
            if size > max_message:
                raise _too_large(max_message)
            end = MESSAGE_PREFIX.size + size
            arrived = len(buffer) + self._gathered
            if ended and arrived == end:
                parts, self._buffer = self._parts, b""
                if parts is None:
                    return flag, copy_slice(buffer, MESSAGE_PREFIX.size, end)
                self._parts, self._gathered = None, 0
                return flag, b"".join(parts)
            is_longer = arrived > end
        if ended or is_longer:  # without waiting for END_STREAM: the rest could be endless
            raise CallFailed("INTERNAL", "The call ended without exactly one whole message.")
        return None

    def take_messages(self, max_message: int) -> list[Message]:
        """Return the messages of a streaming call that are complete.

        Raises CallFailed if one is larger than `max_message` bytes, or cut short by END_STREAM.
        """
        buffer, position = self._buffer, 0
        messages: list[Message] = []
        while (start := position + MESSAGE_PREFIX.size) <= len(buffer):
            flag, size = MESSAGE_PREFIX.unpack_from(buffer, position)
            if size > max_message:
                raise _too_large(max_message)
            if start + size > len(buffer):
                break
            position = start + size
            messages.append((flag, copy_slice(buffer, start, position)))
            self._hold(MESSAGE_PREFIX.size + size)
        if position:
            self._buffer = buffer[position:]
            self._unread += len(messages)
        if self._buffer and self.state == State.HALF_CLOSED_REMOTE:
            raise CallFailed("INTERNAL", "The stream ended inside a message.")
        return messages

    def _hold(self, size: int) -> None:
        """Keep what a whole message of a streaming call holds until it is answered."""
        claim, self.claim = self.claim, None
        if claim is None:
            self.holds.append(size)
        elif claim.is_granted:
            claim.complete()
            self.holds.append(claim)
        else:
            claim.close()
            self.holds.append(size)

    def message_read(self) -> None:
        """Count one message of `take_messages` as read."""
        self._unread -= 1

    def replace_hold(self, claim: Claim) -> Claim | int:
        """Put a claim in place of what the message that was read last holds, and return that."""
        index = len(self.holds) - self._unread - 1
        before, self.holds[index] = self.holds[index], claim
        return before

    @property
    def arrived(self) -> int:
        """Bytes of the message that is arriving."""
        return len(self._buffer) + self._gathered

    @property
    def next_size(self) -> int:
        """Bytes of the message that is arriving, with its prefix; 0 before the prefix."""
        if len(self._buffer) < MESSAGE_PREFIX.size:
            return 0
        return MESSAGE_PREFIX.size + int(MESSAGE_PREFIX.unpack_from(self._buffer)[1])

    def grant(self) -> int:
        """Return by how many bytes to enlarge the peer's window now; 0 for not yet.

        While messages are unread the window stays as it is: more of them would only pile up. It
        also does for a message that exceeds STREAM_WINDOW until its claim is granted.
        """
        if self._unread or self.state != State.OPEN or self.status is not None:
            return 0
        whole = self.next_size
        if whole > STREAM_WINDOW:
            if self.claim is None or not self.claim.is_granted:
                return 0
            if self._parts is None and self.headers.is_unary:
                content = bytes(self._buffer[MESSAGE_PREFIX.size :])
                self._buffer = self._buffer[: MESSAGE_PREFIX.size]
                self._parts, self._gathered = [content], len(content)
            size = whole - self.arrived - self._receive_window
        else:
            missing = whole - len(self._buffer) if whole else STREAM_WINDOW // 2
            if self._receive_window >= missing:
                return 0
            size = STREAM_WINDOW - self._receive_window
        if size <= 0:
            return 0
        self._receive_window += size
        return size

    @property
    def must_claim(self) -> bool:
        """Whether the message that is arriving needs a claim before more of it may come."""
        return (
            self.claim is None
            and self.next_size > STREAM_WINDOW
            and not self._unread
            and self.state == State.OPEN
            and self.status is None
        )

    @property
    def is_within_claim(self) -> bool:
        """Whether the peer may send the rest of a message, and some of it is missing."""
        claim = self.claim
        if claim is None or not claim.is_granted:
            return False
        return 0 < claim.size - claim.moved <= self._receive_window

    # To the peer.

    def send(self, content: bytes) -> None:
        """Queue a message."""
        self.output += MESSAGE_PREFIX.pack(0, len(content)) + content

    def finish(self, status: Status, content: bytes | None) -> None:
        """Queue the answer of a unary call, if there is one, and the trailers."""
        self.status = status
        self._buffer, self._parts, self._gathered = b"", None, 0
        if content is not None:
            self.send(content)

    def expire(self, status: Status) -> None:
        """End the call with a status instead of the messages that wait for a window."""
        self.status = status
        self._buffer = self.output = b""
        self._parts, self._gathered = None, 0

    @property
    def sent(self) -> int:
        """Bytes of the output that are sent."""
        return self._sent

    @property
    def send_window(self) -> int:
        return self._peer.initial_window + self.send_credit

    def enlarge_window(self, size: int) -> None:
        """Let `size` more bytes be sent. Raises StreamError on overflow."""
        self.send_credit += size
        if self.send_window > frames.LARGEST_WINDOW:
            raise StreamError(frames.FLOW_CONTROL_ERROR, "a window larger than allowed")

    def next_frames(self, window: int) -> tuple[list[bytes | memoryview], int]:
        """Return the frames that can be sent now, and how many bytes of `window` they use.

        `window` is the connection's. The last frame has the trailers: it comes once the status is
        known and all messages are sent, and moves the stream to its next state.
        """
        parts: list[bytes | memoryview] = []
        used = 0
        if self.output:
            if not self._headers_sent:
                self._headers_sent = True
                block = RESPONSE_HEADERS
                parts.append(frames.frame(frames.HEADERS, frames.END_HEADERS, self.id, block))
            peer = self._peer
            while unsent := len(self.output) - self._sent:
                stream_window = peer.initial_window + self.send_credit
                size = min(unsent, window - used, stream_window, peer.max_frame)
                if size <= 0:
                    return parts, used
                if size == len(self.output):
                    parts.append(frames.frame(frames.DATA, 0, self.id, self.output))
                else:  # copied once, where they are joined
                    chunk = memoryview(self.output)[self._sent : self._sent + size]
                    parts += frames.header(frames.DATA, 0, self.id, size), chunk
                used += size
                self._sent += size
                self.send_credit -= size
            self.output, self._sent = b"", 0
        if self.status is not None:
            peer = self._peer
            block = trailers(self.status, self.request_id, peer.max_header_list)
            if not self._headers_sent:
                block = RESPONSE_HEADERS + block
            parts.append(frames.headers(frames.END_STREAM, self.id, block, peer.max_frame))
            is_open = self.state == State.OPEN
            self.state = State.HALF_CLOSED_LOCAL if is_open else State.CLOSED
        return parts, used


def _too_large(max_message: int) -> CallFailed:
    # The status that gRPC libraries give such a message; this limit is twice the setting's.
    return CallFailed(
        "RESOURCE_EXHAUSTED", RequestTooLarge.of("message", max_message, setting="").message
    )
