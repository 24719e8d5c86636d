"""Limits of one connection: sizes and times."""

from __future__ import annotations

import math
from typing import NamedTuple


class Limits(NamedTuple):
    """Limits of one connection; times are in seconds, and 0 is never for those that say so."""

    max_message: int  # bytes
    max_streams: int  # open calls
    body_timeout: float  # for the message of a unary call, and for an answer to be read
    header_timeout: float = 10.0  # for the preface and for a header block
    idle_timeout: float = 300.0  # without an open call
    keepalive_interval: float = 60.0  # without a byte received, until a PING is sent; or 0
    keepalive_timeout: float = 20.0  # for any byte after the PING
    max_age: float = 3600.0  # or 0
    grace: float = 30.0  # for the open calls of a connection that has reached max_age

    @property
    def tick(self) -> float:
        """Seconds between two calls of `Connection.tick`."""
        times = (self.body_timeout, self.header_timeout, self.idle_timeout, self.keepalive_timeout)
        return min([*times, self.keepalive_interval or math.inf, self.max_age or math.inf]) / 2
