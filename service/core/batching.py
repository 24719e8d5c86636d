"""Adaptive batching: what is waiting when the model becomes free goes together.

No request waits for company unless `max_delay_s` says so: the first one to arrive asks the event
loop for a turn, and whatever has arrived by then is one batch. Short inference runs on the loop
itself, with no thread hand-off; what would hold up the loop for longer than the budget runs in a
thread (ONNX Runtime releases the GIL), and the queue fills meanwhile.
"""

from __future__ import annotations

import asyncio
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

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs for inputs, rows along dimension 0."""

    def expected_seconds(self, rows: int) -> float:
        """Estimate of the time of one run."""


class BatchLimits(NamedTuple):
    """What of the settings concerns batching; times in seconds, sizes in rows (images)."""

    max_batch_size: int = 64
    max_queue: int = 4096
    max_delay_s: float = 0.0
    inline_budget_s: float = 0.001


class _Waiting(NamedTuple):
    inputs: Sequence[Array]
    rows: int
    deadline: float | None
    outputs: asyncio.Future[list[Array]]
    arrived: float  # perf_counter(), as the times of a run are


class _Ran(NamedTuple):
    """A run: the outputs of each request in it, or what the model raised on its only one.

    `times` are those of its start, its inputs joined, the inference done, its outputs split.
    """

    batch: list[_Waiting]
    result: list[list[Array]] | Exception
    times: tuple[float, float, float, float]


class Batcher:
    """The queue in front of one session. Lives on one event loop; not thread-safe.

    `on_batch(rows, seconds)` is told of every run; `on_failure(error)` of every run that raised;
    `statistics` has where the time went.
    """

    def __init__(
        self,
        session: Runnable,
        limits: BatchLimits,
        executor: Executor,
        on_batch: Callable[[int, float], None] = lambda rows, seconds: None,
        on_failure: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self._session = session
        self._limits = limits
        self._executor = executor
        self._on_batch = on_batch
        self._on_failure = on_failure
        self.statistics = ModelStatistics()
        self._queue: deque[_Waiting] = deque()
        self._queued_rows = 0
        self._turn_asked = False
        self._in_thread = False

    @property
    def queued_rows(self) -> int:
        """Rows that wait at this moment."""
        return self._queued_rows

    def submit(
        self, inputs: Sequence[Array], rows: int, deadline: float | None = None
    ) -> asyncio.Future[list[Array]]:
        """Queue `rows` rows; await the future for the outputs, in the model's order.

        Raises Overloaded at once if the queue is full. The future fails with DeadlineExceeded if
        `deadline` (loop time) passes before inference, with InternalError if the model fails.
        Cancelling the future takes the rows out of the queue.
        """
        if self._queued_rows + rows > self._limits.max_queue:
            self._forget_cancelled()
        if self._queued_rows and self._queued_rows + rows > self._limits.max_queue:
            self.statistics.failed(0.0)
            raise Overloaded(
                f"The queue is full with {self._queued_rows} images waiting; try again later."
            )
        loop = asyncio.get_running_loop()
        outputs: asyncio.Future[list[Array]] = loop.create_future()
        self._queue.append(_Waiting(inputs, rows, deadline, outputs, time.perf_counter()))
        self._queued_rows += rows
        if not self._turn_asked and not self._in_thread:
            self._turn_asked = True
            if self._limits.max_delay_s:
                loop.call_later(self._limits.max_delay_s, self._turn)
            else:
                loop.call_soon(self._turn)
        return outputs

    def _forget_cancelled(self) -> None:
        for waiting in self._queue:
            if waiting.outputs.done():
                self._given_up(waiting)
        self._queue = deque(waiting for waiting in self._queue if not waiting.outputs.done())
        self._queued_rows = sum(waiting.rows for waiting in self._queue)

    def _given_up(self, waiting: _Waiting) -> None:
        self.statistics.failed(time.perf_counter() - waiting.arrived)

    def _turn(self) -> None:
        self._turn_asked = False
        batch = self._take()
        if not batch:
            return
        rows = sum(waiting.rows for waiting in batch)
        if self._session.expected_seconds(rows) <= self._limits.inline_budget_s:
            self._finish(self._run(batch))
            self._next_turn()
            return
        loop = asyncio.get_running_loop()
        self._in_thread = True
        running = loop.run_in_executor(self._executor, self._run, batch)
        running.add_done_callback(self._back_from_thread)

    def _back_from_thread(self, done: asyncio.Future[list[_Ran]]) -> None:
        self._in_thread = False
        self._finish(done.result())
        self._next_turn()

    def _next_turn(self) -> None:
        # Through the loop rather than in a `while`: others get their turn between two batches.
        if self._queue and not self._turn_asked:
            self._turn_asked = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _take(self) -> list[_Waiting]:
        """The next batch: at least one request, joined up to max_batch_size rows."""
        batch: list[_Waiting] = []
        rows = 0
        now = asyncio.get_running_loop().time()
        while self._queue:
            waiting = self._queue[0]
            gone = waiting.outputs.done()
            late = waiting.deadline is not None and waiting.deadline <= now
            if not gone and not late and batch:
                room = rows + waiting.rows <= self._limits.max_batch_size
                if not room or not self._session.batchable:
                    break
            self._queue.popleft()
            self._queued_rows -= waiting.rows
            if gone:
                self._given_up(waiting)
                continue
            if late:
                self._given_up(waiting)
                waiting.outputs.set_exception(
                    DeadlineExceeded("The deadline passed while the request was waiting.")
                )
                continue
            batch.append(waiting)
            rows += waiting.rows
        return batch

    def _run(self, batch: list[_Waiting]) -> list[_Ran]:
        """One run for the whole batch; if that fails, one for each of its members.

        A batch that failed may have one bad member: the others must not pay for it.
        """
        start = joined = time.perf_counter()
        try:
            if len(batch) == 1:
                parts = [self._session.run(batch[0].inputs)]
                inferred = done = time.perf_counter()
            else:
                columns = zip(*(waiting.inputs for waiting in batch), strict=True)
                inputs = [np.concatenate(column) for column in columns]
                joined = time.perf_counter()
                outputs = self._session.run(inputs)
                inferred = time.perf_counter()
                parts = _split(outputs, batch)
                done = time.perf_counter()
        except Exception as error:  # whatever ONNX Runtime raises must reach a caller
            if len(batch) == 1:
                return [_Ran(batch, error, (start,) * 4)]
            return [ran for waiting in batch for ran in self._run([waiting])]
        return [_Ran(batch, parts, (start, joined, inferred, done))]

    def _finish(self, runs: list[_Ran]) -> None:
        for batch, result, times in runs:
            if isinstance(result, Exception):
                self._given_up(batch[0])
                self._on_failure(result)
                if not batch[0].outputs.done():
                    batch[0].outputs.set_exception(InternalError("The model failed on this input."))
                continue
            start, joined, inferred, done = times
            rows = sum(waiting.rows for waiting in batch)
            self._on_batch(rows, done - start)
            answered, arrivals = 0, 0.0
            for waiting, outputs in zip(batch, result, strict=True):
                if waiting.outputs.done():
                    self._given_up(waiting)
                    continue
                waiting.outputs.set_result(outputs)
                answered += 1
                arrivals += waiting.arrived
            self.statistics.ran(
                BatchRun(
                    answered,
                    rows,
                    answered * done - arrivals,
                    answered * start - arrivals,
                    joined - start,
                    inferred - joined,
                    done - inferred,
                )
            )


def _split(outputs: list[Array], batch: list[_Waiting]) -> list[list[Array]]:
    rows = sum(waiting.rows for waiting in batch)
    if any(len(output) != rows for output in outputs):
        # Its shapes promised a row for a row. Alone, each request gets all of its outputs.
        raise RuntimeError("the model gives outputs of another batch size than its inputs")
    parts: list[list[Array]] = []
    start = 0
    for waiting in batch:
        end = start + waiting.rows
        parts.append([output[start:end] for output in outputs])
        start = end
    return parts
