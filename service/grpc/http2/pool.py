"""The connections of one worker: which of them gives way to a newcomer, and who may open calls.

A worker serves `max_connections` connections. Where all places are taken, a newcomer gets the place
of the first of these that exists:

1. The least recently used connection without an open call. Those that are older than a second and
   have made no call yet go first, so a flood of connections displaces itself, not the clients.
2. The least recently used connection of the caller with the most connections, if it has more than
   the newcomer's caller would have. Its calls end with UNAVAILABLE.
3. The least recently used connection if no whole message has come on it for `silence` seconds.

A connection is used when a whole message arrives on it, so bytes that trickle in do not count. If
no connection gives way, the newcomer is refused. Streams that are silent for hours are allowed; on
a full server they are the ones that have to connect again.

A connection may open calls as long as it has fewer than are free in the worker, or fewer than
`_FREE_CALLS`. One connection thus gets half of all calls at most, two get a third each, and a
newcomer always gets some: what one takes depends on what the others left, without looking at them.
"""

from __future__ import annotations

from collections import Counter, deque
from heapq import nsmallest
from typing import Protocol

from service.core.budget import Budget

# Calls that a connection may have open however many the others have.
_FREE_CALLS = 8
# Seconds in which a new connection is expected to make its first call.
_FRESH_S = 1.0
# Unused connections that one look at all connections puts into line.
_LINE = 64


class Member(Protocol):
    """What the pool has to know of a connection."""

    used_at: float  # when it was opened, or its last whole message arrived, in seconds

    @property
    def open_calls(self) -> int: ...

    @property
    def was_used(self) -> bool:
        """Whether it ever had a call."""

    def give_way(self) -> None:
        """Close, and end the calls."""


class Pool:
    """The connections of one worker; their calls count themselves in `open_calls`.

    `budget` has the bytes of all requests and answers of the worker.
    """

    def __init__(
        self, max_connections: int, max_calls: int, silence: float, budget: Budget
    ) -> None:
        self.open_calls = 0
        self.budget = budget
        self._max_connections = max_connections
        self._max_calls = max_calls
        self._silence = silence
        self._callers: dict[Member, str] = {}
        self._counts: Counter[str] = Counter()
        # Unused connections found by the last look, the first to go first.
        self._line: deque[Member] = deque()

    def __len__(self) -> int:
        return len(self._callers)

    def add(self, newcomer: Member, caller: str, now: float) -> bool:
        """Give a new connection a place. Returns False if there is none for it."""
        if len(self._callers) >= self._max_connections:
            victim = self._idle_victim(now) or self._busy_victim(caller, now)
            if victim is None:
                return False
            self.remove(victim)
            victim.give_way()
        self._callers[newcomer] = caller
        self._counts[caller] += 1
        return True

    def remove(self, member: Member) -> None:
        """Forget a connection that is closed; once is enough, and more does no harm."""
        caller = self._callers.pop(member, None)
        if caller is not None:
            self._counts[caller] -= 1
            if not self._counts[caller]:
                del self._counts[caller]

    def may_open(self, open_calls: int) -> bool:
        """Whether a connection with this many open calls may open another one."""
        return open_calls < max(_FREE_CALLS, self._max_calls - self.open_calls)

    def _idle_victim(self, now: float) -> Member | None:
        """The connection without open calls that gives way."""
        for is_second_look in (False, True):
            while self._line:
                member = self._line.popleft()
                if member in self._callers and not member.was_used:
                    return member
            if not is_second_look:
                line = [m for m in self._callers if not m.was_used and m.used_at < now - _FRESH_S]
                self._line.extend(nsmallest(_LINE, line, key=lambda member: member.used_at))
        idle = [member for member in self._callers if not member.open_calls]
        return min(idle, key=lambda member: member.used_at, default=None)

    def _busy_victim(self, caller: str, now: float) -> Member | None:
        """The connection with open calls that gives way to one of this caller."""
        largest, count = self._counts.most_common(1)[0]
        if count > self._counts[caller] + 1:
            members = [member for member, owner in self._callers.items() if owner == largest]
            return min(members, key=lambda member: member.used_at)
        member = min(self._callers, key=lambda member: member.used_at)
        return member if now - member.used_at >= self._silence else None
