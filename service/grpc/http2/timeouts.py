"""The rules of time of one connection: which calls are late, and when the connection ends.

`Connection` asks every `Limits.tick` seconds and carries out the answers; here is no stream of
bytes and no clock. All times are seconds of the connection's clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from service.core.budget import Claim
from service.core.errors import RequestTimeout
from service.grpc.http2 import frames
from service.grpc.http2.frames import FrameReader
from service.grpc.http2.headers import Status
from service.grpc.http2.limits import Limits
from service.grpc.http2.stream import State, Stream

LateCall = tuple[Stream, Status]


class End(NamedTuple):
    """Why a connection ends."""

    cause: str  # for the metric
    reason: str  # for the peer
    code: int = frames.NO_ERROR


_OLD = End("age", "the connection has reached max_connection_age")


class Timeouts:
    """What has been seen of one connection, and since when."""

    def __init__(self, limits: Limits, now: float) -> None:
        self.leaving: End | None = None  # why the peer is asked to connect again
        self._leaving_since = now
        self._limits = limits
        self._opened_at = now
        self._idle_since = now
        self._headers_since: tuple[int, float] | None = None  # the stream of an unfinished block
        self._ping_sent_at: float | None = None
        self._paused_since: float | None = None
        # Of each answer that waits for a window: how much of it was sent, and since when.
        self._stalled: dict[Claim, tuple[int, float]] = {}

    def late_calls(
        self, streams: Iterable[Stream], waiting: Iterable[Stream], now: float
    ) -> list[LateCall]:
        """The open calls that end now; call it whenever there are any.

        These are unary calls whose message is late, and those in `waiting` of whose output nothing
        could be sent for body_timeout.
        """
        self._idle_since = now
        timeout = self._limits.body_timeout
        error = RequestTimeout.of("message", timeout)
        status = Status(error.grpc_code, error.message)
        late = [
            (stream, status)
            for stream in streams
            if stream.headers.is_unary
            and stream.state == State.OPEN
            and stream.opened_at < now - timeout
        ]
        before, self._stalled = self._stalled, {}
        for stream in waiting:
            if (answer := stream.answer) is None:
                continue
            sent, since = before.get(answer, (-1, now))
            if sent != answer.moved:
                since = now
            if now - since < timeout:
                self._stalled[answer] = answer.moved, since
            else:
                reason = f"The answer was not read for {timeout:g} seconds (body_timeout)."
                late.append((stream, Status("RESOURCE_EXHAUSTED", reason)))
        return late

    def end(
        self,
        reader: FrameReader,
        *,
        open_calls: int,
        is_paused: bool,
        used_at: float,
        received_at: float,
        now: float,
    ) -> End | None:
        """The rule that ends the connection now, if there is one.

        `is_paused` is whether the peer does not read its socket, `used_at` when its last whole
        message came, and `received_at` when its last bytes did.
        """
        limits = self._limits
        if not open_calls and now - max(self._idle_since, used_at) >= limits.idle_timeout:
            return End("idle", f"no call for {limits.idle_timeout:g} seconds (idle_timeout)")
        if not reader.preface_received:
            if now - self._opened_at >= limits.header_timeout:
                return End("headers", "no preface came", frames.PROTOCOL_ERROR)
        elif (stream_id := reader.unfinished_headers) is None:
            self._headers_since = None
        elif self._headers_since is None or self._headers_since[0] != stream_id:
            self._headers_since = stream_id, now
        elif now - self._headers_since[1] >= limits.header_timeout:
            reason = f"headers did not end within {limits.header_timeout:g} seconds"
            return End("headers", f"{reason} (header_timeout)", frames.ENHANCE_YOUR_CALM)
        if is_paused:
            if self._paused_since is None:
                self._paused_since = now
            elif now - self._paused_since >= limits.body_timeout:
                return End("unread", "answers are not read (body_timeout)")
        # Any byte is as good an answer to a PING as its ACK.
        if self._ping_sent_at is not None:
            # At the same time too: the clock of uvloop has steps of a millisecond.
            if received_at >= self._ping_sent_at:
                self._ping_sent_at = None
            elif now - self._ping_sent_at >= limits.keepalive_timeout:
                return End("keepalive", "no answer to a PING (keepalive_timeout)")
        return None

    def paused(self) -> None:
        """The peer stops reading its socket, perhaps not for the first time."""
        self._paused_since = None

    def needs_ping(self, received_at: float, now: float) -> bool:
        """Whether a PING has to ask if the peer is still there."""
        interval = self._limits.keepalive_interval
        return bool(interval) and self._ping_sent_at is None and now - received_at >= interval

    def ping_sent(self, now: float) -> None:
        self._ping_sent_at = now

    def old_age(self, now: float) -> End | None:
        """Why the peer has to be asked to connect again now, if it has not been asked yet."""
        max_age = self._limits.max_age
        is_old = max_age and now - self._opened_at >= max_age
        return _OLD if is_old and self.leaving is None else None

    def leave(self, end: End, now: float) -> None:
        """The peer is asked to connect again."""
        self.leaving, self._leaving_since = end, now

    def grace_is_over(self, now: float) -> bool:
        """Whether a peer that was asked to connect again has had the time to do so."""
        return self.leaving is not None and now - self._leaving_since >= self._limits.grace
