"""Adaptive batching: everything queued when the model becomes free runs as one batch.

Strategy: the first request schedules a turn for the next iteration of the event loop, and whatever
has been queued by then forms the batch, up to `max_batch_size` rows. Nothing waits longer unless
`max_delay_s` is set, so an idle server adds no delay; that wait ends when the batch is full or has
one of the `preferred_rows`. Runs that are known to be short happen on the loop itself, without a
thread hand-off (`core.placement`). Others would hold up the loop, so they run in a thread (ONNX
Runtime releases the GIL), and the queue fills meanwhile. If a batch fails, each of its requests
runs again alone, because one bad request must not fail the others.

A run in a thread is ended when all of its requests are cancelled, and after `max_run_s`: then its
requests get their error at once, and none of them runs again. On a machine that is too busy for the
event loop it has more time. If it does not end within `_OBEYS_S`, `on_hang` has the worker
replaced. Until the worker stops, more requests to this model are refused.

`queueing` decides which request is next, `admission` which is refused.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple, Protocol, TypeVar, overload

import numpy as np

from service.core.admission import Admission
from service.core.datatypes import Array
from service.core.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidArgument,
    Overloaded,
    RequestTooLarge,
    ServiceError,
    Unavailable,
)
from service.core.held_outputs import HeldOutputs
from service.core.placement import Place, Placement, Timing
from service.core.queueing import FairQueue, Progress, Queued, Read, Share, fits
from service.core.statistics import BatchRun, ModelStatistics
from service.core.trace import Batch, Trace

_DROP_S = 0.01  # between two searches for cancelled requests in a full queue
_RELAX_S = 0.1
_SAME_S = 0.02  # how long an early refusal stands for the next requests of its caller
_MAX_REFUSALS = 1024  # early refusals that are kept
_TOO_LONG = "The queue became longer than requests may wait (max_queue_seconds)"
_NOT_UTF8 = (
    "The model's answer to this input has text that is not UTF-8, which ONNX Runtime does not "
    "return."
)
_WATCH_S = 0.05  # between two looks at a run in a thread
# No further part of a large request runs in the same go after this time or this many parts.
_GO_S, _GO_PARTS = 0.05, 64
_LATE_S = 0.1  # a look that is later was held up by a machine that is too busy
_MOST_LATE = 3  # times max_run_s; no run has more than this in addition
_OBEYS_S = 5.0  # a run that takes longer to end does not obey

R = TypeVar("R", bound=Read)


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


class QueueLimits(NamedTuple):
    """What a model's own configuration says of its queue; None leaves it to the settings.

    A request that no run has taken after `timeout_s` fails. Unless the queue `obeys_timeouts`, the
    timeouts that requests set for themselves have no effect. A queue of exactly one of the
    `preferred_rows` is not delayed any longer.
    """

    max_delay_s: float | None = None
    preferred_rows: tuple[int, ...] = ()
    max_requests: int | None = None
    timeout_s: float | None = None
    obeys_timeouts: bool = True


class Batching(NamedTuple):
    """Whether rows may be joined into batches and split into parts, and who says so.

    `reason` is what metadata and the log say: `declared ...`, `verified ...` or `off: ...`;
    `declared` is false for what the server found out by itself.
    `max_rows` is the largest batch and the largest part; a request of more than `max_split` rows
    runs whole. `queue` has the model's own limits.
    """

    allowed: bool
    reason: str
    max_rows: int = sys.maxsize
    max_split: int = sys.maxsize
    declared: bool = True
    queue: QueueLimits = QueueLimits()

    @property
    def is_split_at_any_size(self) -> bool:
        """Whether no run has more than `max_rows` rows, however many a request has."""
        return self.allowed and self.max_split == sys.maxsize


class BatchLimits(NamedTuple):
    """The settings of a batcher; times in seconds, sizes in rows (images).

    A request of more rows than `max_batch_size` and `part_rows` runs in parts. The limits of the
    queue are in rows, `max_queue_requests` in requests; a request that no run has taken after
    `queue_timeout_s` fails, unless that is 0.
    """

    max_batch_size: int = 64
    max_queue: int = 4096
    max_delay_s: float = 0.0
    preferred_rows: tuple[int, ...] = ()
    inline_budget_s: float = 0.001
    max_queue_s: float = 2.0
    part_rows: int = 64
    max_run_s: float = 60.0
    max_queue_requests: int = sys.maxsize
    queue_timeout_s: float = 0.0

    def within(self, batching: Batching) -> BatchLimits:
        """These limits for a model that may be batched only so far, and has limits of its own."""
        queue = batching.queue
        return self._replace(
            max_batch_size=min(self.max_batch_size, batching.max_rows),
            max_delay_s=self.max_delay_s if queue.max_delay_s is None else queue.max_delay_s,
            preferred_rows=queue.preferred_rows,
            max_queue_requests=queue.max_requests or self.max_queue_requests,
            max_queue_s=min(self.max_queue_s, queue.timeout_s or self.max_queue_s),
            queue_timeout_s=queue.timeout_s or self.queue_timeout_s,
        )


class _RunResult(NamedTuple):
    """The outputs of each request of a run, or what the model raised on its only request.

    Requests with `read` that ran together share what that made of the outputs.
    Instead of the latter, DeadlineExceeded if the run was ended, and InvalidArgument if the outputs
    are text that is not UTF-8.

    The times are those of the run's start, inputs joined, inference done and outputs split.
    """

    batch: list[Queued]
    outputs: list[list[Array] | Share[Read]] | Exception
    start: float
    joined: float
    inferred: float
    split: float


class _Running:
    """A batch that runs in a thread. `started` is the time of its current run, once it has one.

    `late_s` are seconds since then in which the loop itself got no turn. `timer` ends at `due`:
    uvloop's timers do not always know when they end.
    """

    __slots__ = ("batch", "due", "late_s", "options", "started", "timer")

    def __init__(self, batch: list[Queued], options: RunOptions) -> None:
        self.batch = batch
        self.options = options
        self.started: float | None = None
        self.late_s = 0.0
        self.due = 0.0
        self.timer: asyncio.TimerHandle | None = None


class Batcher:
    """The queue in front of one session. Lives on one event loop; not thread-safe.

    `statistics` is told of every run and of every request that gets no outputs. `clock` returns
    seconds and must agree with the event loop's time, in which deadlines are given. A run that
    cannot be ended keeps its thread of `executor`. `on_hang` is called when there is one, and
    `between_runs` in that thread, between two runs of one call. The batcher is in `overloaded`
    while it keeps its queue short.
    """

    def __init__(
        self,
        session: Runnable,
        limits: BatchLimits,
        executor: Executor,
        statistics: ModelStatistics | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_hang: Callable[[], None] = lambda: None,
        *,
        max_split: int = sys.maxsize,
        overloaded: set[Batcher] | None = None,
        between_runs: Callable[[], None] = lambda: None,
        held: HeldOutputs | None = None,
        row_bytes: int = 0,
        has_small_runs: bool = False,
    ) -> None:
        """`held` counts outputs, but those of a run only if they are not small.

        `row_bytes` are the bytes of a row, 0 if they are unknown.
        """
        self._session = session
        self._placement = Placement(
            session.timing, limits.inline_budget_s, is_row_wise=session.batchable
        )
        self._on_hang = on_hang
        self._between_runs = between_runs
        self._limits = limits
        self._executor = executor
        self.statistics = statistics or ModelStatistics()
        self._clock = clock
        self._max_split = max_split
        self._overloaded = set() if overloaded is None else overloaded
        joins = session.batchable
        self._batch_rows = limits.max_batch_size if joins else 1
        self._admission = Admission(limits.max_queue_s, self._batch_rows)
        self._queue = FairQueue(
            batch_rows=limits.max_batch_size,
            part_rows=limits.part_rows,
            joins=joins,
            admission=self._admission,
            on_dropped=self._fail,
            clock=clock,
            most_alone=self._inline_rows,
        )
        self._take = self._queue.take
        self._small_rows = self._queue.small_rows if joins else sys.maxsize
        # With fewer rows than this in the queue, a request is in the next run.
        self._next_run_rows = min(self._batch_rows, limits.max_queue, limits.max_queue_requests)
        self._queue_timeout_s = limits.queue_timeout_s
        self._turn_scheduled = False
        self._delay: asyncio.TimerHandle | None = None
        self._in_thread = False
        self._has_traces = False  # whether any request was ever traced
        self._held = held
        self._held_runs = None if has_small_runs else held
        self._row_bytes = 0
        self._most_rows = self._most_joined = sys.maxsize  # of a request, and of one run
        if held is not None and row_bytes:
            self._row_bytes = row_bytes
            self._most_rows = max(1, held.most // row_bytes)
            if not has_small_runs:
                self._limit_rows(held, row_bytes)
        self._dropped_at = -_DROP_S
        # The latest early refusal of each caller: until when it stands, its reason and its error.
        self._refusals: dict[str, tuple[float, str, Overloaded]] = {}
        self._hangs = False

    @property
    def queued_rows(self) -> int:
        """Rows in the queue at this moment."""
        return self._queue.rows

    @property
    def waiting(self) -> int:
        """Requests in the queue at this moment."""
        return self._queue.requests

    @overload
    def submit(
        self,
        inputs: Sequence[Array],
        rows: int,
        deadline: float | None = None,
        caller: str = "",
        trace: Trace | None = None,
        *,
        is_admitted: bool = False,
    ) -> asyncio.Future[list[Array]]: ...

    @overload
    def submit(
        self,
        inputs: Sequence[Array],
        rows: int,
        deadline: float | None,
        caller: str,
        trace: Trace | None,
        read: Callable[[list[Array]], R],
    ) -> asyncio.Future[list[Array] | Share[R]]: ...

    def submit(
        self,
        inputs: Sequence[Array],
        rows: int,
        deadline: float | None = None,
        caller: str = "",
        trace: Trace | None = None,
        read: Callable[[list[Array]], Read] | None = None,
        *,
        is_admitted: bool = False,
    ) -> asyncio.Future[Any]:
        """Queue `rows` rows; await the future for the outputs, in the model's order.

        With `read`, which must not raise, a request that ran together with others gets its share of
        what that makes of the outputs of the run: they are read once, and not cut. All requests of
        a model that give one give the same. `is_admitted` is for the next run of a request that had
        one already, which is not refused.

        Raises Overloaded at once if the queue is full, or if the request would wait too long: past
        its `deadline` (loop time) or the bound on time. The future fails with DeadlineExceeded if
        `deadline` passes before inference, with InternalError if the model fails. Cancelling the
        future removes its rows from the queue.
        """
        queue = self._queue
        if not is_admitted and (
            (queue.requests and queue.rows + rows > self._next_run_rows)
            or (deadline is not None and (queue.requests or self._admission.is_running))
        ):
            refusal = self.refusal(rows, deadline, caller)
            if refusal is not None:
                raise refusal
        loop = asyncio.get_running_loop()
        outputs: asyncio.Future[Any] = loop.create_future()
        progress = None
        if rows > self._small_rows:
            self._check_outputs_of(rows)
            progress = Progress(caller, inputs, rows, splits=rows <= self._max_split)
            flow = queue.flow(caller, is_large=True)
            queue.large_rows += rows
        else:
            flow = queue.last
            if flow.caller != caller or flow.is_large:
                flow = queue.flow(caller, is_large=False)
        now = self._clock()
        if trace is not None:
            trace.add(now)
            self._has_traces = True
        if self._queue_timeout_s:
            start_by = now + self._queue_timeout_s
            deadline = start_by if deadline is None else min(deadline, start_by)
        # By position: this is made for every request.
        flow.requests.append(Queued(inputs, rows, deadline, outputs, now, progress, trace, read))
        flow.rows += rows
        queue.rows += rows
        queue.requests += 1
        if not self._turn_scheduled and not self._in_thread:
            self._turn_scheduled = True
            if self._limits.max_delay_s and not self._is_enough():
                self._delay = loop.call_later(self._limits.max_delay_s, self._delayed_turn)
            else:
                loop.call_soon(self._turn)
        elif self._hangs:
            self._refuse_queued()
        elif self._delay is not None and self._is_enough():
            self._delay.cancel()
            self._delay = None
            loop.call_soon(self._turn)
        return outputs

    def _inline_rows(self) -> int:
        """How many rows may run on the event loop, if the model has one shape."""
        only = self._placement.only
        return 0 if only is None else min(only.inline_rows, self._most_joined)

    def _limit_rows(self, held: HeldOutputs, row_bytes: int) -> None:
        """Adapt the rows of a run to the bytes that their outputs have, or had in the last run."""
        limits = self._limits
        self._row_bytes = row_bytes
        self._most_joined = most = max(1, held.most // 2 // max(1, row_bytes))
        self._batch_rows = self._admission.batch_rows = min(limits.max_batch_size, most)
        self._queue.limit_rows(self._batch_rows, min(limits.part_rows, most))
        self._small_rows = self._queue.small_rows
        rows = self._batch_rows, limits.max_queue, limits.max_queue_requests
        self._next_run_rows = min(rows)

    def _check_outputs_of(self, rows: int) -> None:
        """Raise RequestTooLarge if this many rows are known to have too large outputs."""
        if rows > self._most_rows:
            raise RequestTooLarge(
                f"The outputs of {rows} rows would have {rows * self._row_bytes} bytes, more than "
                f"max_inflight_bytes; send at most {self._most_rows} per request."
            )

    def _is_enough(self) -> bool:
        """Whether a batch of what is queued need not wait for more."""
        rows = self._queue.rows
        return rows >= self._batch_rows or rows in self._limits.preferred_rows

    def _delayed_turn(self) -> None:
        self._delay = None
        self._turn()

    def early_refusal(self, deadline: float | None, caller: str) -> Overloaded | None:
        """The error for a request that has not been read, if the queue is kept short now.

        While no request leaves the queue, the next one of the same caller gets the same error.
        """
        if self not in self._overloaded:
            return None
        if (latest := self._refusals.get(caller)) is not None:
            until, reason, error = latest
            if self._clock() < until:
                self.statistics.shed(reason)
                return error
        return self.refusal(0, deadline, caller)

    def refusal(self, rows: int, deadline: float | None, caller: str) -> Overloaded | None:
        """The error for a request that may not join the queue now, which is counted; or None."""
        now = self._clock()
        reason, message, wait = self._judge(rows, deadline, caller, now)
        if reason and now - self._dropped_at >= _DROP_S:
            self._dropped_at = now
            if dropped := self._queue.drop(lambda queued: queued.outputs.done()):
                self._fail(dropped)
                reason, message, wait = self._judge(rows, deadline, caller, now)
        if not reason:
            return None
        # A second large request, or a deadline that an empty queue could not meet either, says
        # nothing about the queue.
        is_long = reason != "deadline" or wait > self._admission.strict_bound
        if is_long and rows <= self._small_rows:
            if self._admission.refused(now):
                self._shed_standing()
            if self not in self._overloaded and self._admission.is_strict(now):
                self._overloaded.add(self)
                self._relax()
        self.statistics.shed(reason)
        error = Overloaded.of(message, wait)
        # A request of no rows has not been read. A deadline says nothing about the next one.
        if not rows and reason != "deadline" and len(self._refusals) < _MAX_REFUSALS:
            self._refusals[caller] = now + _SAME_S, reason, error
        return error

    def _judge(
        self, rows: int, deadline: float | None, caller: str, now: float
    ) -> tuple[str, str, float]:
        """Why a request cannot join the queue: the reason for metrics, the sentence, the wait.

        The reason is empty for a request that can.
        """
        queue, admission = self._queue, self._admission
        is_large = rows > self._small_rows
        ahead = queue.ahead_of(caller, is_large)
        wait = admission.wait(now, ahead)
        # Small requests and large ones each have this room: none can turn the other kind away.
        waiting = queue.large_rows if is_large else queue.rows - queue.large_rows
        if waiting and waiting + rows > self._limits.max_queue:
            return "queue", f"The queue is full with {waiting} images waiting (max_queue)", wait
        if queue.requests >= self._limits.max_queue_requests:
            full = f"Exceeds maximum queue size: {queue.requests} requests wait (max_queue_size)"
            return "queue", full, wait
        if ahead >= self._batch_rows:  # not in the next run
            bound = admission.bound(now, queue.requests)
            if wait > bound:
                lasting = "" if bound == self._limits.max_queue_s else " in a lasting queue"
                return (
                    "time",
                    f"The queue is longer than the {bound:.3g} seconds that a request may wait"
                    f"{lasting} (max_queue_seconds)",
                    wait,
                )
        if deadline is not None and (ahead or admission.is_running):
            runs = rows // self._batch_rows if is_large else 0
            end = now + wait + admission.run_seconds(rows) + runs * admission.run_seconds()
            if end > deadline:
                return "deadline", "The deadline passes before the model could answer", wait
        return "", "", wait

    def _shed_standing(self) -> None:
        """Refuse the oldest requests of a queue that is kept short from now on.

        They waited longest, and answered in their order, all would be late.
        """
        runs = int(self._admission.strict_bound / max(self._admission.run_seconds(), 1e-6))
        wait = self._admission.strict_bound
        for queued in self._queue.shed(max(1, runs) * self._batch_rows):
            if not queued.outputs.done():
                queued.outputs.set_exception(Overloaded.of(_TOO_LONG, wait))
            self.statistics.shed("time")

    def _relax(self) -> None:
        """Leave `overloaded` once nothing was refused for a while."""
        if self._admission.is_strict(self._clock()):
            asyncio.get_running_loop().call_later(_RELAX_S, self._relax)
        else:
            self._overloaded.discard(self)

    def _turn(self) -> None:
        if self._held_runs is not None and self._held_runs.must_wait(self._turn):
            return
        self._turn_scheduled = False
        batch = self._take()
        if self._refusals:
            self._refusals.clear()
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

    def _run_in_thread(self, batch: list[Queued], rows: int, place: Place | None) -> None:
        loop = asyncio.get_running_loop()
        running = _Running(batch, self._session.options())

        def run() -> tuple[list[_RunResult], float]:
            clock = self._placement.clock
            start = clock()
            results = self._run(batch, running)
            seconds = clock() - start
            self._run_on(results, running)
            return results, seconds

        def back_on_the_loop(done: asyncio.Future[tuple[list[_RunResult], float]]) -> None:
            assert running.timer is not None
            running.timer.cancel()
            self._in_thread = self._hangs = False
            results, seconds = done.result()
            first, *others = results
            if first.batch is batch:  # otherwise it failed, and its requests ran again alone
                if others:
                    self._queue.took([result.batch[0] for result in others])
                    self._admission.began = others[-1].start
                # A failed run does not say how long one of this many rows takes.
                if place is not None and isinstance(first.outputs, list):
                    place.ran_in_thread(rows, seconds)
            self._finish(results)

        self._in_thread = True
        running.due = self._clock() + _WATCH_S
        running.timer = loop.call_later(_WATCH_S, self._watch, running)
        loop.run_in_executor(self._executor, run).add_done_callback(back_on_the_loop)

    def _watch(self, running: _Running) -> None:
        """End a run that no request waits for, or that has lasted for `max_run_s`."""
        loop = asyncio.get_running_loop()
        limit_s = self._limits.max_run_s
        # A batch that failed runs again in parts, and each of these runs has its own time.
        lasted_s, now = 0.0, self._clock()
        if running.started is not None:
            # A machine that gives the loop no core gives none to the run either.
            late_s = min(now - running.due, now - running.started)
            if late_s > _LATE_S:
                running.late_s += late_s
            lasted_s = now - running.started - min(running.late_s, _MOST_LATE * limit_s)
        if lasted_s < limit_s:
            if all(queued.outputs.done() for queued in running.batch):
                running.options.terminate = True
            wait_s = min(_WATCH_S, limit_s - lasted_s)
            running.due = now + wait_s
            running.timer = loop.call_later(wait_s, self._watch, running)
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
        error = "A run of the model does not end; this worker is replaced."
        waiting = self._queue.drop(lambda _: True)
        for queued in waiting:
            if not queued.outputs.done():
                queued.outputs.set_exception(Unavailable(error))
        self._fail(waiting)

    def _fail(self, requests: Sequence[Queued]) -> None:
        """Count requests that get no outputs, and tell those of them that expired."""
        now = self._clock()
        for queued in requests:
            if not queued.outputs.done():
                queued.outputs.set_exception(DeadlineExceeded.of())
            # The parts of a large request are one request.
            if queued.progress is not None:
                if queued.progress.has_failed:
                    continue
                queued.progress.has_failed = True
            self.statistics.failed(now - queued.arrived)

    def _run(self, batch: list[Queued], running: _Running | None = None) -> list[_RunResult]:
        """Run the batch; if that fails, run each of its requests alone. Called on any thread.

        `running` is given for a run that can be ended.
        """
        start = joined = self._clock()
        options = None
        if running is not None:
            options, running.started, running.late_s = running.options, start, 0.0
        try:
            if len(batch) == 1:
                parts: list[Any] = [self._session.run(batch[0].inputs, options)]
                inferred = split = self._clock()
            else:
                columns = zip(*(queued.inputs for queued in batch), strict=True)
                # Strings that are not UTF-8 have a dtype of their own; such requests run alone.
                inputs = [np.concatenate(column, casting="equiv") for column in columns]
                joined = self._clock()
                outputs = self._session.run(inputs, options)
                inferred = self._clock()
                parts = _split(outputs, batch, cuts_all=self._held_runs is not None)
                split = self._clock()
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            was_ended = options is not None and options.terminate
            if len(batch) > 1 and not was_ended:
                return [result for queued in batch for result in self._run([queued], running)]
            # `_watch` has answered the requests of a run that was ended, or found none.
            reason = DeadlineExceeded.of_run(self._limits.max_run_s) if was_ended else error
            if isinstance(error, UnicodeDecodeError):
                reason = InvalidArgument(_NOT_UTF8)
            return [_RunResult(batch, reason, start, start, start, start)]
        return [_RunResult(batch, parts, start, joined, inferred, split)]

    def _run_on(self, results: list[_RunResult], running: _Running) -> None:
        """Run the next parts of a large request in the same go, while no other request waits.

        A turn of the event loop between two parts would take 0.3 ms, as the run has emptied the
        caches: 5 % of a request of 512 images. Adds to `results`, so few that `_finish` is short
        and the queue's figures are not old.
        """
        if len(results) > 1 or len(results[0].batch) > 1:
            return
        end = self._clock() + _GO_S
        for part in self._queue.following(results[0].batch[0]):
            last = results[-1]
            outputs = last.outputs if isinstance(last.outputs, Exception) else last.outputs[0]
            is_fine = isinstance(outputs, list) and fits(last.batch[0], outputs)
            if not is_fine or len(results) > _GO_PARTS or self._clock() > end:
                return
            self._between_runs()
            results += self._run([part], running)

    def _finish(self, results: list[_RunResult]) -> None:
        """Give each request its outputs, and schedule the next turn if others are waiting."""
        admission = self._admission
        admission.is_running = False
        if not self._queue.requests_left:
            seconds = self._clock() - admission.began
            admission.latest[self._queue.taken_rows.bit_length()].append(seconds)
        known = self._traced(results) if self._has_traces else results
        for batch, outputs_of_each, start, joined, inferred, split in known:
            if isinstance(outputs_of_each, Exception):
                self._tell_failure(batch, outputs_of_each)
                continue
            rows, answered, arrivals = 0, 0, 0.0
            for queued, outputs in zip(batch, outputs_of_each, strict=True):
                rows += queued.rows
                if queued.outputs.done():  # cancelled during the run
                    self._fail([queued])
                    continue
                if queued.progress is None:
                    if self._held_runs is not None:
                        own = outputs if isinstance(outputs, list) else outputs.of.outputs
                        self._hold(self._held_runs, own, queued.rows)
                    queued.outputs.set_result(outputs)
                elif not self._is_complete(queued, outputs):
                    continue
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
        if self._queue.requests and not self._turn_scheduled:
            self._turn_scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _tell_failure(self, batch: list[Queued], error: Exception) -> None:
        """Tell the requests of a run what the model raised on them."""
        is_part = batch[0].progress is not None and not batch[0].outputs.done()
        if is_part and not isinstance(error, ServiceError):
            # The outputs or the error must be those of the whole.
            self._queue.run_whole(batch[0])
            return
        for queued in batch:
            if not queued.outputs.done():
                is_told = isinstance(error, InvalidArgument)
                queued.outputs.set_exception(
                    error if is_told else InternalError("The model failed on this input.")
                )
        self._fail(batch)
        if not isinstance(error, ServiceError):
            self.statistics.run_failed(error)

    def _traced(self, results: list[_RunResult]) -> list[_RunResult]:
        """The same, once each run is added to the traces of its requests."""
        for batch, outputs, *times in results:
            traces = [queued.trace for queued in batch if queued.trace is not None]
            if traces:
                error = type(outputs).__name__ if isinstance(outputs, Exception) else ""
                rows = sum([queued.rows for queued in batch])
                run = Batch(self.statistics.model, len(batch), rows, error)
                run.times(*times)
                for trace in traces:
                    trace.add(run)
        return results

    def _is_complete(self, part: Queued, outputs: list[Array] | Share[Read]) -> bool:
        """Whether a large request is answered, now that one more part of it is finished."""
        assert part.progress is not None
        assert isinstance(outputs, list)
        try:
            whole = part.progress.add(part, outputs)
        except ValueError:  # only the outputs of the whole are right
            self._queue.run_whole(part)
            return False
        if whole is not None:
            if self._held is not None:
                self._held.hold(whole)
            part.outputs.set_result(whole)
        return whole is not None

    def _hold(self, held: HeldOutputs, outputs: Sequence[Array], rows: int) -> None:
        """Count outputs until they are freed. If the size of a row was unknown, they show it."""
        row_bytes = held.hold(outputs) // max(1, rows)
        if row_bytes != self._row_bytes and self._session.batchable:
            self._limit_rows(held, row_bytes)


def _split(
    outputs: list[Array], batch: list[Queued], *, cuts_all: bool
) -> list[list[Array] | Share[Read]]:
    """The outputs of each request of a run. With `cuts_all`, none holds rows of others."""
    rows = sum([queued.rows for queued in batch])
    if any(len(output) != rows for output in outputs):
        # The model's shapes promised one output row per input row. Run alone, each request gets
        # all of its outputs.
        raise RuntimeError("the model gives outputs of another batch size than its inputs")
    parts: list[list[Array] | Share[Read]] = []
    start = 0
    shared: Read | None = None
    for queued in batch:
        end = start + queued.rows
        if queued.read is None or queued.progress is not None or cuts_all:
            parts.append([output[start:end] for output in outputs])
        else:
            if shared is None:
                shared = queued.read(outputs)
            parts.append(Share(shared, start, end))
        start = end
    return parts
