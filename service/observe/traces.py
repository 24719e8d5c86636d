"""Decides which requests are traced, and collects what they remember.

A caller may have decided already, in the W3C header `traceparent`: a request that is not sampled
there is not traced here. One that is sampled is, but no more than `per_second` of them, since
anyone can send that flag. Of all others, a share is.

Source: W3C Trace Context, 3.2 (traceparent) and 4.3 (what to do with one that is malformed).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from random import random
from threading import Event
from time import monotonic

from service.core.trace import Trace, new_id

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_SAMPLED = 1  # of the flags
# The least that has to be passed on of a tracestate (3.3.1.5). Longer ones are dropped.
_LONGEST_STATE = 512


class Traces:
    """The sampler of one worker and the queue of its finished traces. Lives on one event loop.

    `share` of the requests are traced whose caller has not decided. `per_second` bounds those that
    are traced because of their caller, and the messages of streams. A trace that has ended is added
    to `ended`, from which a thread takes it; beyond `most_ended` it is counted in `lost` instead.
    `is_due` is set when `batch` of them wait. `clock` returns seconds.
    """

    def __init__(
        self,
        *,
        share: float,
        per_second: int,
        most_ended: int = 2048,
        batch: int = 64,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._share = share
        self._per_second = per_second
        self._most_ended = most_ended
        self._batch = batch
        self._clock = clock
        self._second_ends = 0.0
        self._room = 0
        self.ended: deque[Trace] = deque()
        self.is_due = Event()
        self.lost = 0

    def begin(self, parents: Sequence[str], states: Sequence[str]) -> Trace | None:
        """The trace of a request with these headers traceparent and tracestate, or None."""
        if not parents:
            # Which requests are traced is no secret.
            return Trace(new_id(128), 0) if random() < self._share else None  # noqa: S311
        parent = parse(parents)
        trace_id, parent_id, is_sampled = parent or (0, 0, None)
        if is_sampled is False:
            return None
        if not (is_sampled and self._has_room()) and random() >= self._share:  # noqa: S311
            return None
        state = ",".join(states) if parent else ""
        state = state if len(state) <= _LONGEST_STATE else ""
        return Trace(trace_id or new_id(128), parent_id, state)

    def message(self, stream: Trace) -> Trace | None:
        """The trace of the next message of a traced stream; None if there are too many."""
        return stream.message() if self._has_room() else None

    def _has_room(self) -> bool:
        now = self._clock()
        if now >= self._second_ends:
            self._second_ends, self._room = now + 1.0, self._per_second
        self._room -= 1
        return self._room >= 0

    def end(self, trace: Trace, code: str) -> None:
        """Hand over the trace of a request that ended with this status."""
        trace.ended = monotonic()
        trace.code = code
        if len(self.ended) >= self._most_ended:
            self.lost += 1
            return
        self.ended.append(trace)
        if len(self.ended) == self._batch:
            self.is_due.set()


def parse(parents: Sequence[str]) -> tuple[int, int, bool] | None:
    """The ids of the trace and of the parent, and whether it is sampled; None if malformed.

    A request with several of them has none.
    """
    match = _PARENT.fullmatch(parents[0].strip(" \t")) if len(parents) == 1 else None
    if match is None:
        return None
    version, trace_id, parent_id, flags, rest = match.groups()
    # Version 00 ends after the flags; later ones may have more.
    if version == "ff" or (version == "00" and rest is not None):
        return None
    ids = int(trace_id, 16), int(parent_id, 16)
    return (*ids, bool(int(flags, 16) & _SAMPLED)) if all(ids) else None
