"""Adaptive batching: everything queued when the model becomes free runs as one batch.

Strategy: the first request schedules a turn for the next iteration of the event loop, and whatever
has been queued by then forms the batch, up to `max_batch_size` rows. Nothing waits longer unless
`max_delay_s` is set, so an idle server adds no delay. Runs that are known to be short happen on
the loop itself, without a thread hand-off (`core.placement`). Others would hold up the loop, so
they run in a thread (ONNX Runtime releases the GIL), and the queue fills meanwhile. If a batch
fails, each of its requests runs again alone, because one bad request must not fail the others.

A run in a thread is ended when all of its requests are cancelled, and after `max_run_s`: then its
requests get their error at once, and none of them runs again. If it does not end within `_OBEYS_S`,
`on_hang` has the worker replaced. Until the worker stops, more requests to this model are refused.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple, Protocol

import numpy as np

from service.core.datatypes import Array
from service.core.errors import (
    DeadlineExceeded,
    InternalError,
    Overloaded,
    ServiceError,
    Unavailable,
)
from service.core.placement import Place, Placement, Timing
from service.core.statistics import BatchRun, ModelStatistics

_OBEYS_S = 5.0  # a run that takes longer to end does not obey


class RunOptions(Protocol):
    """Options of one run. Setting `terminate` from another thread ends it, with an error."""

    terminate: bool


class Runnable(Protocol):
    """What a batcher needs of a session."""

    batchable: bool
    timing: Timing

    def options(self) -> RunOptions:
        """Make the options of a run that may have to be ended."""

    def run(self, inputs: Sequence[Array], options: Any = None, /) -> list[Array]:
        """The outputs for these inputs, rows along dimension 0."""


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
    max_run_s: float = 60.0

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

    Instead of the latter, DeadlineExceeded if the run was ended.

    The times are those of the run's start, inputs joined, inference done and outputs split.
    """

    batch: list[_Queued]
    outputs: list[list[Array]] | Exception
    start: float
    joined: float
    inferred: float
    split: float


class _Running:
    """A batch that runs in a thread. `started` is the time of its current run, once it has one."""

    __slots__ = ("batch", "options", "started", "timer")

    def __init__(self, batch: list[_Queued], options: RunOptions) -> None:
        self.batch = batch
        self.options = options
        self.started: float | None = None
        self.timer: asyncio.TimerHandle | None = None


class Batcher:
    """The queue in front of one session. Lives on one event loop; not thread-safe.

    `statistics` is told of every run and of every request that gets no outputs. `clock` returns
    seconds and must agree with the event loop's time, in which deadlines are given. A run that
    cannot be ended keeps its thread of `executor`. `on_hang` is called when there is one.
    """

    def __init__(
        self,
        session: Runnable,
        limits: BatchLimits,
        executor: Executor,
        statistics: ModelStatistics | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_hang: Callable[[], None] = lambda: None,
    ) -> None:
        self._session = session
        self._placement = Placement(
            session.timing, limits.inline_budget_s, is_row_wise=session.batchable
        )
        self._on_hang = on_hang
        self._limits = limits
        self._executor = executor
        self.statistics = statistics or ModelStatistics()
        self._clock = clock
        self._queue: deque[_Queued] = deque()
        self._queued_rows = 0
        self._turn_scheduled = False
        self._in_thread = False
        self._hangs = False

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
        elif self._hangs:
            self._refuse_queued()
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
        placement = self._placement
        place = placement.only or placement.of([queued.inputs for queued in batch])
        if (
            place is None
            or rows > place.inline_rows
            or (placement.device is not None and placement.device.locked())
        ):
            self._run_in_thread(batch, rows, place)
        elif place.is_timed:
            start = placement.clock()
            results = self._run(batch)
            place.ran_inline(rows, placement.clock() - start)
            self._finish(results)
        else:
            results = self._run(batch)
            if results[-1].split - results[0].start > placement.budget_s:
                place.suspect()
            self._finish(results)

    def _run_in_thread(self, batch: list[_Queued], rows: int, place: Place | None) -> None:
        loop = asyncio.get_running_loop()
        running = _Running(batch, self._session.options())

        def run() -> tuple[list[_RunResult], float]:
            clock = self._placement.clock
            start = clock()
            return self._run(batch, running), clock() - start

        def back_on_the_loop(done: asyncio.Future[tuple[list[_RunResult], float]]) -> None:
            assert running.timer is not None
            running.timer.cancel()
            self._in_thread = self._hangs = False
            results, seconds = done.result()
            # A failed run, or several, do not say how long a run of this many rows takes.
            if place is not None and isinstance(results[0].outputs, list) and len(results) == 1:
                place.ran_in_thread(rows, seconds)
            self._finish(results)

        left = len(batch)

        def one_less(_: asyncio.Future[list[Array]]) -> None:
            nonlocal left
            left -= 1
            if not left:  # no request waits for the outputs
                running.options.terminate = True

        for queued in batch:
            queued.outputs.add_done_callback(one_less)
        self._in_thread = True
        running.timer = loop.call_later(self._limits.max_run_s, self._end_if_too_long, running)
        loop.run_in_executor(self._executor, run).add_done_callback(back_on_the_loop)

    def _end_if_too_long(self, running: _Running) -> None:
        """End the current run of a batch that has lasted for `max_run_s`; else look again later."""
        loop = asyncio.get_running_loop()
        limit_s = self._limits.max_run_s
        # A batch that failed runs again in parts, and each of these runs has its own time.
        lasted_s = 0.0 if running.started is None else self._clock() - running.started
        if lasted_s < limit_s:
            running.timer = loop.call_later(limit_s - lasted_s, self._end_if_too_long, running)
            return
        running.options.terminate = True
        for queued in running.batch:
            if not queued.outputs.done():
                queued.outputs.set_exception(DeadlineExceeded.of_run(limit_s))
        self.statistics.run_terminated(limit_s)
        running.timer = loop.call_later(_OBEYS_S, self._give_up)

    def _give_up(self) -> None:
        """The run in the thread does not obey: refuse what waits for it."""
        self._hangs = True
        self._on_hang()
        self._refuse_queued()

    def _refuse_queued(self) -> None:
        while self._queue:
            queued = self._queue.popleft()
            self.statistics.failed(self._clock() - queued.arrived)
            if not queued.outputs.done():
                queued.outputs.set_exception(
                    Unavailable("A run of the model does not end; this worker is replaced.")
                )
        self._queued_rows = 0

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

    def _run(self, batch: list[_Queued], running: _Running | None = None) -> list[_RunResult]:
        """Run the batch; if that fails, run each of its requests alone. Called on any thread.

        `running` is given for a run that can be ended.
        """
        start = joined = self._clock()
        options = None
        if running is not None:
            options, running.started = running.options, start
        try:
            if len(batch) == 1:
                parts = [self._session.run(batch[0].inputs, options)]
                inferred = split = self._clock()
            else:
                columns = zip(*(queued.inputs for queued in batch), strict=True)
                inputs = [np.concatenate(column) for column in columns]
                joined = self._clock()
                outputs = self._session.run(inputs, options)
                inferred = self._clock()
                parts = _split(outputs, [queued.rows for queued in batch])
                split = self._clock()
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            was_ended = options is not None and options.terminate
            if len(batch) > 1 and not was_ended:
                return [result for queued in batch for result in self._run([queued], running)]
            # `_end_if_too_long` has answered the requests of a run that was ended.
            reason = DeadlineExceeded.of_run(self._limits.max_run_s) if was_ended else error
            return [_RunResult(batch, reason, start, start, start, start)]
        return [_RunResult(batch, parts, start, joined, inferred, split)]

    def _finish(self, results: list[_RunResult]) -> None:
        """Give each request its outputs, and schedule the next turn if others are waiting."""
        for batch, outputs_of_each, start, joined, inferred, split in results:
            if isinstance(outputs_of_each, Exception):
                for queued in batch:
                    self.statistics.failed(self._clock() - queued.arrived)
                    if not queued.outputs.done():
                        queued.outputs.set_exception(
                            InternalError("The model failed on this input.")
                        )
                if not isinstance(outputs_of_each, ServiceError):
                    self.statistics.run_failed(outputs_of_each)
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
