"""The events that a connection reports to its listener."""

from __future__ import annotations

from typing import NamedTuple

from service.grpc.http2.stream import Stream


class CallStarted(NamedTuple):
    """The headers of a streaming call, or of one with a deadline, have arrived."""

    stream: Stream


class MessageReceived(NamedTuple):
    """A message is complete, and so is the request if the call is unary."""

    stream: Stream
    flag: int  # 0 for an uncompressed message
    content: bytes


class MessagesEnded(NamedTuple):
    """The peer sends no more messages on a streaming call."""

    stream: Stream


class OutputDrained(NamedTuple):
    """All messages of a streaming call that waited for a window are sent."""

    stream: Stream


class CallEnded(NamedTuple):
    """The answer of a finished call waited for a window and is sent; its deadline is over."""

    stream: Stream


class CallCancelled(NamedTuple):
    """The peer gave up the call or broke its rules: stop working on it."""

    stream: Stream


Event = CallStarted | MessageReceived | MessagesEnded | OutputDrained | CallEnded | CallCancelled
