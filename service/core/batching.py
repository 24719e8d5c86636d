"""Adaptive batching: everything queued when the model becomes free runs as one batch.

Strategy: the first request schedules a turn for the next iteration of the event loop, and whatever
has been queued by then forms the batch, up to `max_batch_size` rows. Nothing waits longer unless
`max_delay_s` is set, so an idle server adds no delay. Runs that are expected to be short happen on
the loop itself, without a thread hand-off. Longer ones would hold up the loop, so they run in a
thread (ONNX Runtime releases the GIL), and the queue fills meanwhile. If a batch fails, each of its
requests runs again alone, because one bad request must not fail the others.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import NamedTuple, Protocol

import numpy as np

from service.core.datatypes import Array
from service.core.errors import DeadlineExceeded, InternalError, Overloaded
from service.core.statistics import BatchRun, ModelStatistics


class Runnable(Protocol):
    """What a batcher needs of a session."""

    batchable: bool

    def run(self, inputs: Sequence[Array], /) -> list[Array]:
        """The outputs for these inputs, rows along dimension 0."""

    def expected_seconds(self, rows: int) -> float:
        """Estimate how long a run of this many rows takes."""


class Batching(NamedTuple):
    """Whether rows may be joined into batches and split into parts, and who says so.

    `reason` is what metadata and the log say: `declared ...`, `verified ...` or `off: ...`;
    `declared` is false for what the server found out by itself.
    `max_rows` is the largest batch and the largest part; a request of more than `max_split` rows
    runs whole.
    """

    allowed: bool
    reason: str
    max_rows: int = sys.maxsize
    max_split: int = sys.maxsize
    declared: bool = True


class BatchLimits(NamedTuple):
    """The settings of a batcher; times in seconds, sizes in rows (images)."""

    max_batch_size: int = 64
    max_queue: int = 4096
    max_delay_s: float = 0.0
    inline_budget_s: float = 0.001

    def within(self, batching: Batching) -> BatchLimits:
        """These limits for a model that may be batched only so far."""
        return self._replace(max_batch_size=min(self.max_batch_size, batching.max_rows))


class _Queued(NamedTuple):
    """A request in the queue; `deadline` and `arrived` in the batcher's clock."""

    inputs: Sequence[Array]
    rows: int
    deadline: float | None
    outputs: asyncio.Future[list[Array]]
    arrived: float
    caller: str


class _RunResult(NamedTuple):
    """The outputs of each request of a run, or what the model raised on its only request.

    The times are those of the run's start, inputs joined, inference done and outputs split.
    """

    batch: list[_Queued]
    outputs: list[list[Array]] | Exception
    start: float
    joined: float
    inferred: float
    split: float


class Batcher:
    """The queue in front of one session. Lives on one event loop; not thread-safe.

    `statistics` is told of every run and of every request that gets no outputs. `clock` returns
    seconds and must agree with the event loop's time, in which deadlines are given.
    """

    def __init__(
        self,
        session: Runnable,
        limits: BatchLimits,
        executor: Executor,
        statistics: ModelStatistics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._limits = limits
        self._executor = executor
        self.statistics = statistics or ModelStatistics()
        self._clock = clock
        self._queue: deque[_Queued] = deque()
        self._queued_rows = 0
        self._turn_scheduled = False
        self._in_thread = False

    @property
    def queued_rows(self) -> int:
        """Rows in the queue at this moment."""
        return self._queued_rows

    def submit(
        self,
        inputs: Sequence[Array],
        rows: int,
        deadline: float | None = None,
        caller: str = "",
    ) -> asyncio.Future[list[Array]]:
        """Queue `rows` rows; await the future for the outputs, in the model's order.

        Raises Overloaded at once if the queue is full. The future fails with DeadlineExceeded if
        `deadline` (loop time) passes before inference, with InternalError if the model fails.
        Cancelling the future removes its rows from the queue.
        """
        if self._queued_rows + rows > self._limits.max_queue:
            self._drop_cancelled()
        if self._queued_rows and self._queued_rows + rows > self._limits.max_queue:
            self.statistics.failed(0.0)
            raise Overloaded(
                f"The queue is full with {self._queued_rows} images waiting; try again later."
            )
        loop = asyncio.get_running_loop()
        outputs: asyncio.Future[list[Array]] = loop.create_future()
        # By position: this is made for every request.
        self._queue.append(_Queued(inputs, rows, deadline, outputs, self._clock(), caller))
        self._queued_rows += rows
        if not self._turn_scheduled and not self._in_thread:
            self._turn_scheduled = True
            if self._limits.max_delay_s:
                loop.call_later(self._limits.max_delay_s, self._turn)
            else:
                loop.call_soon(self._turn)
        return outputs

    def _drop_cancelled(self) -> None:
        waiting = [queued for queued in self._queue if not queued.outputs.done()]
        for queued in self._queue:
            if queued.outputs.done():
                self.statistics.failed(self._clock() - queued.arrived)
        self._queue = deque(waiting)
        self._queued_rows = sum(queued.rows for queued in waiting)

    def _turn(self) -> None:
        self._turn_scheduled = False
        batch = self._take()
        if not batch:
            return
        rows = sum([queued.rows for queued in batch])
        if self._session.expected_seconds(rows) <= self._limits.inline_budget_s:
            self._finish(self._run(batch))
            return

        def back_on_the_loop(done: asyncio.Future[list[_RunResult]]) -> None:
            self._in_thread = False
            self._finish(done.result())

        self._in_thread = True
        running = asyncio.get_running_loop().run_in_executor(self._executor, self._run, batch)
        running.add_done_callback(back_on_the_loop)

    def _take(self) -> list[_Queued]:
        """Take the next batch: at least one request, joined up to max_batch_size rows.

        Cancelled and expired requests are dropped, so they cost no inference.
        """
        batch: list[_Queued] = []
        rows = 0
        now = self._clock()
        while self._queue:
            queued = self._queue[0]
            cancelled = queued.outputs.done()
            expired = queued.deadline is not None and queued.deadline <= now
            if batch and not cancelled and not expired:
                fits = rows + queued.rows <= self._limits.max_batch_size
                if not fits or not self._session.batchable:
                    break
            self._queue.popleft()
            self._queued_rows -= queued.rows
            if cancelled or expired:
                self.statistics.failed(now - queued.arrived)
                if not cancelled:
                    queued.outputs.set_exception(DeadlineExceeded.of())
                continue
            batch.append(queued)
            rows += queued.rows
        return batch

    def _run(self, batch: list[_Queued]) -> list[_RunResult]:
        """Run the batch; if that fails, run each of its requests alone. Called on any thread."""
        start = joined = self._clock()
        try:
            if len(batch) == 1:
                parts = [self._session.run(batch[0].inputs)]
                inferred = split = self._clock()
            else:
                columns = zip(*(queued.inputs for queued in batch), strict=True)
                inputs = [np.concatenate(column) for column in columns]
                joined = self._clock()
                outputs = self._session.run(inputs)
                inferred = self._clock()
                parts = _split(outputs, [queued.rows for queued in batch])
                split = self._clock()
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            if len(batch) == 1:
                return [_RunResult(batch, error, start, start, start, start)]
            return [result for queued in batch for result in self._run([queued])]
        return [_RunResult(batch, parts, start, joined, inferred, split)]

    def _finish(self, results: list[_RunResult]) -> None:
        """Give each request its outputs, and schedule the next turn if others are waiting."""
        for batch, outputs_of_each, start, joined, inferred, split in results:
            if isinstance(outputs_of_each, Exception):
                self.statistics.failed(self._clock() - batch[0].arrived)
                self.statistics.run_failed(outputs_of_each)
                if not batch[0].outputs.done():
                    batch[0].outputs.set_exception(InternalError("The model failed on this input."))
                continue
            rows, answered, arrivals = 0, 0, 0.0
            for queued, outputs in zip(batch, outputs_of_each, strict=True):
                rows += queued.rows
                if queued.outputs.done():  # cancelled during the run
                    self.statistics.failed(self._clock() - queued.arrived)
                    continue
                queued.outputs.set_result(outputs)
                answered += 1
                arrivals += queued.arrived
            self.statistics.ran(
                BatchRun(
                    requests=answered,
                    rows=rows,
                    answered=answered * split - arrivals,
                    queued=answered * start - arrivals,
                    joining=joined - start,
                    inference=inferred - joined,
                    splitting=split - inferred,
                )
            )
        # Through the loop rather than in a `while`: others get their turn between two batches.
        if self._queue and not self._turn_scheduled:
            self._turn_scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)


def _split(outputs: list[Array], rows_of_each: list[int]) -> list[list[Array]]:
    rows = sum(rows_of_each)
    if any(len(output) != rows for output in outputs):
        # The model's shapes promised one output row per input row. Run alone, each request gets
        # all of its outputs.
        raise RuntimeError("the model gives outputs of another batch size than its inputs")
    parts: list[list[Array]] = []
    start = 0
    for count in rows_of_each:
        parts.append([output[start : start + count] for output in outputs])
        start += count
    return parts
