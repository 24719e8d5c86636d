"""Shares each turn of the event loop among the connections whose frames it handles.

One read may bring thousands of small frames, and many connections may bring as many at once. If all
of them were handled before anything else, everyone would wait for them. So their costs are counted,
in units of some 10 us, and what goes beyond those of a turn waits for the next ones. The
connections that wait are served in the order in which they came, each with an equal share.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

# Some 10 ms per turn. The units are restored when fewer than enough are left, not after every read,
# which would take a microsecond. Enough is what 64 gRPC calls that arrive together cost.
PER_TURN, _ENOUGH = 1024, 704
_LEAST_SHARE = 8


class Turns:
    """What the connections of one event loop share."""

    __slots__ = ("_is_scheduled", "_left", "_waiting")

    def __init__(self) -> None:
        self._left = PER_TURN
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_scheduled = False

    @property
    def waiting(self) -> int:
        """How many connections have frames left."""
        return len(self._waiting)

    def share(self) -> int:
        """What a connection may spend now; if it is 0, the connection has to wait."""
        if self._left <= 0:
            return 0
        if not self._waiting:
            return self._left
        return max(_LEAST_SHARE, min(self._left, PER_TURN // (len(self._waiting) + 1)))

    def spend(self, cost: int) -> None:
        """Count what a connection has used."""
        self._left -= cost
        if self._left < _ENOUGH and not self._is_scheduled:
            self._schedule()

    def wait(self, work: Callable[[], None]) -> None:
        """Call `work` when it is this connection's turn."""
        self._waiting.append(work)
        if not self._is_scheduled:
            self._schedule()

    def _schedule(self) -> None:
        self._is_scheduled = True
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._is_scheduled = False
        self._left = PER_TURN
        try:
            for _ in range(len(self._waiting)):
                if self._left <= 0:
                    break
                self._waiting.popleft()()
        finally:  # whatever one of them does, the others have their turn
            if self._waiting and not self._is_scheduled:
                self._schedule()
