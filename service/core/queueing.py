"""The requests that wait for one model: whose turn it is, fairly among callers.

Strategy: each caller has a flow of small requests and one of large requests, which run in parts.
Flows take turns by surplus round robin over rows: a flow whose credit is used up waits until all
others had theirs. A single flow, the usual case, is a plain deque. A model that is not batched runs
one whole request per turn.

Source: surplus round robin, a form of deficit round robin (Shreedhar and Varghese, 1995) in which a
flow may overdraw its credit.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from service.core.admission import Admission
from service.core.datatypes import Array
from service.core.trace import Trace

T = TypeVar("T")


class Queued(NamedTuple):
    """A request, or a part of one; `deadline` and `arrived` in the batcher's clock.

    The parts of a large request share its `outputs`, its `arrived` and its `progress`. With `read`,
    the outputs of the whole run are read by it once, for all requests of the run.
    """

    inputs: Sequence[Array]
    rows: int
    deadline: float | None
    outputs: asyncio.Future[Any]
    arrived: float
    progress: Progress | None = None
    trace: Trace | None = None
    read: Callable[[list[Array]], Read] | None = None


class Read(Protocol):
    """What was read from the outputs of a run, for all of its requests."""

    outputs: list[Array]


class Share(NamedTuple, Generic[T]):
    """A request's rows, `start` to `stop`, of what was read."""

    of: T
    start: int
    stop: int


class Progress:
    """How far a large request is: rows taken from the queue, and the outputs of finished parts."""

    __slots__ = ("done", "finished", "has_failed", "splits", "taken", "waiting", "whole")

    def __init__(self, caller: str, inputs: Sequence[Array], rows: int, splits: bool) -> None:
        self.whole = (caller, inputs, rows)
        self.splits = splits
        self.taken = 0
        self.waiting = True  # some of it is in the queue
        self.has_failed = False
        self.finished: list[list[Array]] = []
        self.done = 0  # rows of these

    def add(self, part: Queued, outputs: list[Array]) -> list[Array] | None:
        """Take the outputs of the next part; returns those of the request after the last one.

        Raises ValueError if they do not have a row for each of the part's.
        """
        if not fits(part, outputs):
            raise ValueError("the model gives outputs of another batch size than its inputs")
        self.finished.append(outputs)
        self.done += part.rows
        if self.waiting or self.done < self.whole[2]:
            return None
        return [np.concatenate(column) for column in zip(*self.finished, strict=True)]


def fits(part: Queued, outputs: Sequence[Array]) -> bool:
    """Whether outputs have a row for each of the part's."""
    return all(np.shape(output)[:1] == (part.rows,) for output in outputs)


class Flow:
    """The small or the large requests of one caller, first in, first out."""

    __slots__ = ("caller", "credit", "is_large", "requests", "rows")

    def __init__(self, caller: str, is_large: bool, credit: int) -> None:
        self.caller = caller
        self.is_large = is_large
        self.credit = credit
        self.requests: deque[Queued] = deque()
        self.rows = 0


class FairQueue:
    """All flows of one model. `rows` and `requests` count what waits, `large_rows` a part of it.

    `batch_rows` is the largest batch, `part_rows` the largest part of a large request: one of more
    rows than both. While no other request waits, a part may have as many rows as `most_alone` says.
    `joins` is whether requests may be joined. `admission` learns how long runs take, and
    `on_dropped` gets the cancelled and expired requests.
    """

    def __init__(
        self,
        *,
        batch_rows: int,
        part_rows: int,
        joins: bool,
        admission: Admission,
        on_dropped: Callable[[list[Queued]], None],
        clock: Callable[[], float],
        most_alone: Callable[[], int] = lambda: 0,
    ) -> None:
        self.small_rows = max(batch_rows, part_rows)  # of the largest request that is not large
        self.rows = 0
        self.large_rows = 0
        self.requests = 0
        self.taken_rows = 0  # by the latest `take`, and the requests that it left
        self.requests_left = 0
        self.last = Flow("", False, 0)  # of the latest request; may be empty
        self._batch_rows = batch_rows
        self._joins = joins
        self._admission = admission
        self._on_dropped = on_dropped
        self._clock = clock
        self._most_alone = most_alone
        # A quarter of a batch, so that a batch has room for several callers.
        self._credit = max(1, batch_rows // 4)
        self._small = {"": self.last}
        self._large: dict[str, Flow] = {}
        self._turns = deque([self.last])  # the flows; an empty one is forgotten at its next turn

    def limit_rows(self, batch_rows: int, part_rows: int) -> None:
        """Change the largest batch and the largest part."""
        self._batch_rows = batch_rows
        self.small_rows = max(batch_rows, part_rows)
        self._credit = max(1, self._batch_rows // 4)

    def flow(self, caller: str, is_large: bool) -> Flow:
        """The flow of a caller, which becomes `last`."""
        flows = self._large if is_large else self._small
        flow = flows.get(caller)
        if flow is None:
            flow = flows[caller] = Flow(caller, is_large, self._credit)
            self._turns.append(flow)
        self.last = flow
        return flow

    def ahead_of(self, caller: str, is_large: bool) -> int:
        """Estimate how many rows, or requests of a model that is not batched, run before this."""
        flow = (self._large if is_large else self._small).get(caller)
        turns = len(self._turns) + (flow is None)
        if not self._joins:
            waiting = 0 if flow is None else len(flow.requests)
            return min(self.requests, waiting * turns + turns - 1)
        # One flow alone waits for all of its own.
        own = 0 if flow is None else flow.rows
        return min(self.rows, own * turns + (turns - 1) * self._credit)

    def take(self) -> list[Queued]:
        """Take the next batch: at least one request or part, joined up to `batch_rows`.

        Cancelled and expired requests are dropped instead.
        """
        now = self._clock()
        batch: list[Queued] = []
        dropped: list[Queued] = []
        room = self._batch_rows
        while self.requests:
            flow = self._turns[0]
            is_contended = len(self._turns) > 1
            if is_contended and not self._has_turn(flow):
                continue
            queued = flow.requests[0]
            rows = queued.rows
            if queued.progress is not None and queued.progress.splits:
                most = room if batch or is_contended else self._rows_alone()
                rows -= queued.progress.taken
                rows = min(rows, most, flow.credit) if is_contended else min(rows, most)
            if queued.outputs.done() or (queued.deadline is not None and queued.deadline <= now):
                dropped.append(self._pop(flow))
                continue
            if batch and (rows > room or room <= 0 or not self._joins):
                break
            if is_contended:
                # However large a request that cannot be split is, its flow skips a few turns only.
                flow.credit -= min(rows, self._batch_rows) if self._joins else self._credit
            if queued.progress is not None:
                queued = self._cut(flow, queued, rows)
            else:
                flow.requests.popleft()
                self.requests -= 1
                flow.rows -= rows
                self.rows -= rows
            batch.append(queued)
            room -= rows
        if dropped:
            self._on_dropped(dropped)
        admission = self._admission
        if self.requests_left:
            admission.latest[self.taken_rows.bit_length()].append(now - admission.began)
        admission.is_running = bool(batch)
        admission.began = now
        self.taken_rows = self._batch_rows - room
        self.requests_left = self.requests
        if not self.requests:
            admission.standing_since = None
        elif admission.standing_since is None:
            admission.standing_since, admission.standing_requests = now, self.requests
        return batch

    def _rows_alone(self) -> int:
        """The largest part while no other request waits."""
        return max(self.small_rows, self._most_alone())

    def _has_turn(self, flow: Flow) -> bool:
        """Whether the first flow may run; if not, its turn is over."""
        if not flow.requests:
            self._turns.popleft()
            del (self._large if flow.is_large else self._small)[flow.caller]
            if self.last is flow:
                self.last = self._turns[0]
            return False
        if flow.credit <= 0:
            flow.credit += self._credit
            self._turns.rotate(-1)
            return False
        return True

    def _cut(self, flow: Flow, queued: Queued, rows: int) -> Queued:
        """Take this many rows of a large request."""
        progress = queued.progress
        assert progress is not None
        start = progress.taken
        if start + rows == queued.rows:
            self._pop(flow)
        else:
            self._count(flow, -rows)
        if not progress.splits:
            return queued._replace(progress=None)  # run whole, it is like any other
        progress.taken = start + rows
        return queued._replace(
            inputs=[array[start : start + rows] for array in queued.inputs], rows=rows
        )

    def following(self, part: Queued) -> Iterator[Queued]:
        """The next parts of a large request, while no other one waits.

        They stay in the queue until `took`. May be called on another thread.
        """
        progress = part.progress
        if progress is None or not progress.splits:
            return
        _, inputs, rows = progress.whole
        start = progress.taken
        while start < rows and self.requests == 1 and not part.outputs.done():
            if part.deadline is not None and part.deadline <= self._clock():
                return
            end = min(start + self.small_rows, rows)
            yield part._replace(inputs=[array[start:end] for array in inputs], rows=end - start)
            start = end

    def took(self, parts: Sequence[Queued]) -> None:
        """Parts that were `following` have run: they wait no longer."""
        for part in parts:
            progress = part.progress
            assert progress is not None
            if not progress.waiting:  # it was dropped meanwhile
                break
            flow = self._large[progress.whole[0]]
            if progress.taken + part.rows == progress.whole[2]:
                self._pop(flow)
            else:
                self._count(flow, -part.rows)
            progress.taken += part.rows
            self.taken_rows = part.rows  # its run is the latest
        self.requests_left = self.requests
        if not self.requests:
            self._admission.standing_since = None

    def run_whole(self, part: Queued) -> None:
        """Queue the large request of a part again, to run whole and before others of its flow."""
        progress = part.progress
        assert progress is not None
        if not progress.splits:  # another part of it has failed
            return
        caller, inputs, rows = progress.whole
        flow = self.flow(caller, is_large=True)
        if progress.waiting:
            flow.requests = deque(q for q in flow.requests if q.progress is not progress)
            self.requests -= 1
            self._count(flow, progress.taken - rows)
        progress.splits, progress.waiting, progress.taken = False, True, 0
        flow.requests.appendleft(part._replace(inputs=inputs, rows=rows))
        self.requests += 1
        self._count(flow, rows)

    def drop(self, is_done: Callable[[Queued], bool]) -> list[Queued]:
        """Remove the requests that are done."""
        dropped: list[Queued] = []
        for flow in self._turns:
            for _ in range(len(flow.requests)):
                if is_done(flow.requests[0]):
                    dropped.append(self._pop(flow))
                else:
                    flow.requests.rotate(-1)
        self.requests_left = min(self.requests_left, self.requests)
        return dropped

    def shed(self, rows: int) -> list[Queued]:
        """Remove the oldest small requests of each flow, beyond its share of `rows`."""
        share = rows // len(self._turns)
        dropped: list[Queued] = []
        for flow in self._small.values():
            while len(flow.requests) > 1 and (
                (flow.rows if self._joins else len(flow.requests)) > share
            ):
                dropped.append(self._pop(flow))
        return dropped

    def _pop(self, flow: Flow) -> Queued:
        queued = flow.requests.popleft()
        self.requests -= 1
        rows, progress = queued.rows, queued.progress
        if progress is not None:
            rows -= progress.taken
            progress.waiting = False
        self._count(flow, -rows)
        return queued

    def _count(self, flow: Flow, rows: int) -> None:
        flow.rows += rows
        self.rows += rows
        if flow.is_large:
            self.large_rows += rows
