from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import uvloop
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.core.batching import Batcher, Batching, BatchLimits, QueueLimits
from service.core.budget import Budget
from service.core.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidArgument,
    Overloaded,
    Unavailable,
)
from service.core.held_outputs import HeldOutputs
from service.core.placement import Timing
from service.core.statistics import ModelStatistics
from service.core.trace import Batch, Trace


class Options:
    """What ends a run of the sessions below, as ONNX Runtime's RunOptions do."""

    terminate = False


class Doubler:
    """A session that doubles rows, fails on 13, and remembers its batches."""

    batchable = True

    def __init__(self, seconds: float = 0.0) -> None:
        self.timing = Timing(is_known=True, rows=16, fixed_s=seconds)
        self.batches: list[list[int]] = []
        self.may_run = threading.Event()
        self.may_run.set()

    def options(self) -> Options:
        return Options()

    def run(self, inputs: Sequence[Any], options: Options | None = None) -> list[Any]:
        assert self.may_run.wait(120)
        if 13 in inputs[0]:
            raise RuntimeError("unlucky")
        self.batches.append(inputs[0].tolist())
        return [inputs[0] * 2]


def rows(*values: int) -> list[np.ndarray]:
    return [np.array(values)]


def run(session: Doubler, scenario: Any, limits: BatchLimits | None = None) -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            await scenario(Batcher(session, limits or BatchLimits(), executor))

    asyncio.run(main())


def test_requests_that_wait_together_run_together_and_get_their_own_rows() -> None:
    session = Doubler()

    async def scenario(batcher: Batcher) -> None:
        answers = await asyncio.gather(
            batcher.submit(rows(1), 1), batcher.submit(rows(2, 3), 2), batcher.submit(rows(4), 1)
        )
        assert [answer[0].tolist() for answer in answers] == [[2], [4, 6], [8]]

    run(session, scenario)
    assert session.batches == [[1, 2, 3, 4]]


class Sum:
    """What is read of the outputs of a run of `Doubler`."""

    made: ClassVar[list[Sum]] = []

    def __init__(self, outputs: list[Any]) -> None:
        self.outputs = outputs
        self.made.append(self)


def test_the_outputs_of_a_run_are_read_once_for_all_who_ask_for_that() -> None:
    Sum.made.clear()

    async def scenario(batcher: Batcher) -> None:
        how = (None, "", None, Sum)
        one, plain, two = await asyncio.gather(
            batcher.submit(rows(1), 1, *how),
            batcher.submit(rows(2, 3), 2),
            batcher.submit(rows(4, 5), 2, *how),
        )
        assert one.of is two.of
        assert one.of.outputs[0].tolist() == [2, 4, 6, 8, 10]
        assert (one.start, one.stop, two.start, two.stop) == (0, 1, 3, 5)
        assert plain[0].tolist() == [4, 6]
        # Alone, and after a run that failed, a request has its outputs as they are; so has one in
        # parts.
        unlucky, lucky = batcher.submit(rows(13), 1, *how), batcher.submit(rows(7), 1, *how)
        assert [output.tolist() for output in await lucky] == [[14]]
        with pytest.raises(InternalError):
            await unlucky
        many = await batcher.submit(rows(*range(20, 90)), 70, *how)
        assert [output.tolist() for output in many] == [list(range(40, 180, 2))]

    run(Doubler(), scenario, BatchLimits(max_batch_size=16, part_rows=16))
    assert len(Sum.made) == 1


def test_who_reads_large_outputs_keeps_only_its_own() -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            held = HeldOutputs(Budget(1 << 20))
            batcher = Batcher(Doubler(), BatchLimits(), executor, held=held)
            how = (None, "", None, Sum)
            one, two = await asyncio.gather(
                batcher.submit(rows(1), 1, *how), batcher.submit(rows(2, 3), 2, *how)
            )
            assert [one[0].tolist(), two[0].tolist()] == [[2], [4, 6]]
            assert held.bytes == 3 * 8

    asyncio.run(main())


def test_a_run_is_a_step_of_each_traced_request_in_it() -> None:
    one, other, alone = (Trace(number, 0) for number in (1, 2, 3))

    async def scenario(batcher: Batcher) -> None:
        await asyncio.gather(
            batcher.submit(rows(1), 1, trace=one),
            batcher.submit(rows(2), 1),
            batcher.submit(rows(3, 4), 2, trace=other),
        )
        unlucky = batcher.submit(rows(13), 1, trace=alone)
        with pytest.raises(InternalError):
            await unlucky

    run(Doubler(), scenario)
    (queued, batch), (_, same), (_, failed) = one.steps, other.steps, alone.steps
    assert batch is same
    assert isinstance(batch, Batch)
    assert isinstance(failed, Batch)
    assert isinstance(queued, float)
    assert (batch.requests, batch.rows, batch.error) == (3, 4, "")
    assert batch.members == [(1, one.step_id(2)), (2, other.step_id(2))]
    assert queued <= batch.start <= batch.joined <= batch.inferred <= batch.split
    assert (failed.requests, failed.error) == (1, "RuntimeError")


def test_batches_stop_at_their_limit_but_a_large_request_goes_alone() -> None:
    session = Doubler()

    async def scenario(batcher: Batcher) -> None:
        sent = [rows(1, 2), rows(3), rows(4, 5, 6, 7, 8), rows(9)]
        await asyncio.gather(*(batcher.submit(each, len(each[0])) for each in sent))
        assert batcher.queued_rows == 0

    run(session, scenario, BatchLimits(max_batch_size=3))
    assert session.batches == [[1, 2, 3], [4, 5, 6, 7, 8], [9]]


def test_a_model_with_a_fixed_batch_runs_one_request_at_a_time() -> None:
    session = Doubler()
    session.batchable = False

    async def scenario(batcher: Batcher) -> None:
        await asyncio.gather(batcher.submit(rows(1), 1), batcher.submit(rows(2), 1))

    run(session, scenario)
    assert session.batches == [[1], [2]]


def test_a_full_queue_refuses_at_once() -> None:
    async def scenario(batcher: Batcher) -> None:
        first = batcher.submit(rows(1, 2, 3), 3)  # over the bound, but the queue is empty
        with pytest.raises(Overloaded, match="3 images"):
            batcher.submit(rows(4), 1)
        again = batcher.submit(rows(5), 1, is_admitted=True)
        await first
        assert (await again)[0].tolist() == [10]
        await batcher.submit(rows(4), 1)

    run(Doubler(), scenario, BatchLimits(max_queue=2))


class Shed(ModelStatistics):
    """Remembers why requests were refused."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str] = []

    def shed(self, reason: str) -> None:
        self.reasons.append(reason)


def test_an_early_refusal_stands_while_nothing_leaves_the_queue_and_each_is_counted() -> None:
    times, overloaded, shed = [100.0], set[Batcher](), Shed()

    async def scenario() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(
                Doubler(),
                BatchLimits(max_queue=2),
                executor,
                shed,
                clock=lambda: times[0],
                overloaded=overloaded,
            )
            first = batcher.submit(rows(1, 2, 3), 3)  # over the bound, but the queue is empty
            assert batcher.early_refusal(None, "one") is None
            overloaded.add(batcher)
            refused = [batcher.early_refusal(None, caller) for caller in ("one", "one", "two")]
            assert refused[0] is refused[1] is not refused[2] is not None
            times[0] += 0.01
            assert batcher.early_refusal(200.0, "one") is refused[0]  # a deadline changes nothing
            times[0] += 1.0
            assert batcher.early_refusal(None, "one") not in (None, refused[0])
            assert shed.reasons == ["queue"] * 5
            await first
            assert batcher.early_refusal(None, "one") is None
            assert shed.reasons == ["queue"] * 5

    asyncio.run(scenario())


def test_a_queue_that_is_limited_in_requests_refuses_the_next_one() -> None:
    session = Doubler()

    async def scenario(batcher: Batcher) -> None:
        waiting = [batcher.submit(rows(1, 2), 2), batcher.submit(rows(3), 1)]
        with pytest.raises(
            Overloaded, match=r"Exceeds maximum queue size: 2 requests wait \(max_queue_size\)"
        ):
            batcher.submit(rows(4), 1)
        await asyncio.gather(*waiting)
        await batcher.submit(rows(4), 1)

    run(session, scenario, BatchLimits(max_queue_requests=2))
    assert session.batches == [[1, 2, 3], [4]]


def test_a_request_that_no_run_takes_in_time_fails_and_one_that_runs_is_answered() -> None:
    """The clock stands still until the first run begins."""
    session = Doubler()
    session.batchable = False
    times = [100.0]

    async def scenario() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(
                session, BatchLimits(queue_timeout_s=0.5), executor, clock=lambda: times[0]
            )
            inputs = rows(1)
            first = batcher.submit(inputs, 1)
            second = batcher.submit(rows(2), 1, times[0] + 60)
            await asyncio.sleep(0)
            times[0] += 0.5
            assert (await first)[0].tolist() == [2]
            with pytest.raises(DeadlineExceeded):
                await second
            assert (await batcher.submit(rows(3), 1))[0].tolist() == [6]

    asyncio.run(scenario())
    assert session.batches == [[1], [3]]


def test_the_limits_of_a_model_replace_those_of_the_settings() -> None:
    settings = BatchLimits(max_batch_size=8, max_delay_s=0.5, max_queue_s=2.0)
    assert settings.within(Batching(True, "", max_rows=4)) == settings._replace(max_batch_size=4)
    own = QueueLimits(max_delay_s=0.1, max_requests=3, timeout_s=0.2)
    assert settings.within(Batching(True, "", queue=own)) == settings._replace(
        max_delay_s=0.1, max_queue_requests=3, max_queue_s=0.2, queue_timeout_s=0.2
    )
    patient = QueueLimits(timeout_s=60.0)
    assert settings.within(Batching(True, "", queue=patient)).max_queue_s == 2.0


def test_cancelled_and_expired_requests_are_not_run() -> None:
    session = Doubler()

    async def scenario(batcher: Batcher) -> None:
        now = asyncio.get_running_loop().time()
        gone = batcher.submit(rows(1), 1)
        gone.cancel()
        late = batcher.submit(rows(2), 1, deadline=now - 1)
        in_time = batcher.submit(rows(3), 1, deadline=now + 60)
        assert (await in_time)[0].tolist() == [6]
        with pytest.raises(DeadlineExceeded):
            await late

    run(session, scenario)
    assert session.batches == [[3]]


def test_one_bad_request_does_not_fail_its_batch() -> None:
    session = Doubler()

    async def scenario(batcher: Batcher) -> None:
        good, bad, other = (batcher.submit(rows(value), 1) for value in (1, 13, 2))
        assert (await good)[0].tolist() == [2]
        assert (await other)[0].tolist() == [4]
        with pytest.raises(InternalError):
            await bad

    run(session, scenario)


def test_slow_inference_leaves_the_loop_and_the_queue_fills_meanwhile() -> None:
    session = Doubler(seconds=1.0)
    session.may_run.clear()

    async def scenario(batcher: Batcher) -> None:
        first = batcher.submit(rows(1), 1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # its turn came: it is in the thread now, and the loop still runs
        rest = [batcher.submit(rows(value), 1) for value in (2, 3)]
        assert batcher.queued_rows == 2
        session.may_run.set()
        await asyncio.gather(first, *rest)

    run(session, scenario)
    assert session.batches == [[1], [2, 3]]


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only while it would wait: tests of delays take no time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        select = self._selector.select

        def advance(timeout: float | None) -> list[Any]:
            self.now += timeout or 0.0
            return select(0)

        self._selector.select = advance

    def time(self) -> float:
        return self.now


def in_virtual_time(session: Doubler, scenario: Any, limits: BatchLimits) -> None:
    loop = VirtualTimeLoop()

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            await scenario(Batcher(session, limits, executor, clock=loop.time))

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())


def test_a_delay_lets_later_requests_join() -> None:
    session = Doubler()

    async def scenario(batcher: Batcher) -> None:
        first = batcher.submit(rows(1), 1)
        await asyncio.sleep(0.049)
        second = batcher.submit(rows(2), 1)
        await asyncio.sleep(0.002)
        third = batcher.submit(rows(3), 1)
        await asyncio.gather(first, second, third)

    in_virtual_time(session, scenario, BatchLimits(max_delay_s=0.05))
    assert session.batches == [[1, 2], [3]]


def test_a_full_batch_and_one_of_a_preferred_size_do_not_wait_for_the_end_of_the_delay() -> None:
    session = Doubler()

    async def scenario(batcher: Batcher) -> None:
        start = asyncio.get_running_loop().time()
        now = asyncio.get_running_loop().time
        await asyncio.gather(*(batcher.submit(rows(n), 1) for n in (1, 2)))  # preferred
        await asyncio.gather(*(batcher.submit(rows(n, n), 2) for n in (3, 4)))  # full
        await batcher.submit(rows(5, 5, 5, 5, 5), 5)
        assert now() == start
        await batcher.submit(rows(6), 1)
        assert now() == pytest.approx(start + 60)

    limits = BatchLimits(
        max_batch_size=4, max_delay_s=60, preferred_rows=(2,), max_queue_s=100, part_rows=4
    )
    in_virtual_time(session, scenario, limits)
    assert session.batches == [[1, 2], [3, 3, 4, 4], [5, 5, 5, 5, 5], [6]]


def test_a_model_that_is_not_batched_has_no_delay() -> None:
    session = Doubler()
    session.batchable = False

    async def scenario(batcher: Batcher) -> None:
        start = asyncio.get_running_loop().time()
        await batcher.submit(rows(1), 1)
        assert asyncio.get_running_loop().time() == start

    in_virtual_time(session, scenario, BatchLimits(max_delay_s=60, max_queue_s=100))


def test_a_deadline_that_passes_during_the_delay_costs_no_inference() -> None:
    session = Doubler()

    async def scenario(batcher: Batcher) -> None:
        now = asyncio.get_running_loop().time()
        late = batcher.submit(rows(1), 1, deadline=now + 0.05)
        in_time = batcher.submit(rows(2), 1, deadline=now + 0.0501)
        assert (await in_time)[0].tolist() == [4]
        with pytest.raises(DeadlineExceeded):
            await late

    in_virtual_time(session, scenario, BatchLimits(max_delay_s=0.05))
    assert session.batches == [[2]]


class Clock:
    """A clock that a session moves on when it runs."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.now


class TakesTime(Doubler):
    """A session whose runs take two seconds per row on a clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def run(self, inputs: Sequence[Any], options: Options | None = None) -> list[Any]:
        outputs = super().run(inputs)
        self._clock.now += 2.0 * len(inputs[0])
        return outputs


def test_statistics_have_the_time_in_the_queue_and_in_the_model() -> None:
    clock = Clock()

    async def main() -> dict[str, Any]:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(TakesTime(clock), BatchLimits(), executor, clock=clock)
            first = batcher.submit(rows(1), 1)
            clock.now += 3.0
            second = batcher.submit(rows(2, 3), 2)
            clock.now += 1.0
            await asyncio.gather(first, second)
            return batcher.statistics.as_dict()

    statistics = asyncio.run(main())
    assert (statistics["inference_count"], statistics["execution_count"]) == (3, 1)
    parts = {name: part["ns"] / 1e9 for name, part in statistics["inference_stats"].items()}
    assert parts["queue"] == (3 + 1) + 1
    assert parts["compute_infer"] == 2 * 6  # both requests were in the run
    assert parts["success"] == (4 + 6) + (1 + 6)
    assert statistics["batch_stats"][0]["batch_size"] == 3


def test_a_request_that_fails_counts_with_the_time_it_waited() -> None:
    clock = Clock()

    async def main() -> dict[str, Any]:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(Doubler(), BatchLimits(), executor, clock=clock)
            cancelled = batcher.submit(rows(1), 1)
            cancelled.cancel()
            bad = batcher.submit(rows(13), 1)
            clock.now += 2.0
            with pytest.raises(InternalError):
                await bad
            return batcher.statistics.as_dict()

    failures = asyncio.run(main())["inference_stats"]["fail"]
    assert failures == {"count": 2, "ns": 4_000_000_000}


class CountingExecutor(ThreadPoolExecutor):
    """One thread; counts the pieces of work."""

    def __init__(self) -> None:
        super().__init__(1)
        self.submitted = 0

    def submit(self, *arguments: Any, **keywords: Any) -> Future[Any]:
        self.submitted += 1
        return super().submit(*arguments, **keywords)


class Pausing(Doubler):
    """A slow session; each run begins when the test says so."""

    def __init__(self) -> None:
        super().__init__(seconds=1.0)
        self.begun = threading.Semaphore(0)
        self.goes_on = threading.Semaphore(0)

    def run(self, inputs: Sequence[Any], options: Options | None = None) -> list[Any]:
        self.begun.release()
        assert self.goes_on.acquire(timeout=120)
        return super().run(inputs, options)

    async def until_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=120)


# Every run is in the thread.
SMALL_PARTS = BatchLimits(max_batch_size=4, part_rows=4, inline_budget_s=0)
TEN = rows(*range(1, 11))
TEN_IN_PARTS = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


def test_the_parts_of_a_large_request_run_in_one_go_while_nothing_else_waits() -> None:
    session = Doubler(seconds=1.0)
    between: list[int] = []

    async def main() -> None:
        with CountingExecutor() as executor:
            batcher = Batcher(
                session,
                SMALL_PARTS,
                executor,
                between_runs=lambda: between.append(len(session.batches)),
            )
            (doubled,) = await batcher.submit(TEN, 10)
            assert doubled.tolist() == [2 * value for value in range(1, 11)]
            assert (executor.submitted, batcher.queued_rows, batcher.waiting) == (1, 0, 0)
            assert batcher.statistics.as_dict()["execution_count"] == 3

    asyncio.run(main())
    assert session.batches == TEN_IN_PARTS
    assert between == [1, 2]


class TakesMilliseconds(Doubler):
    """A slow session whose runs take a millisecond per row by the clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(seconds=1.0)
        self._clock = clock

    def run(self, inputs: Sequence[Any], options: Options | None = None) -> list[Any]:
        self._clock.now += 0.001 * len(inputs[0])
        return super().run(inputs, options)


def test_parts_that_run_in_one_go_are_runs_of_their_own_for_the_estimate() -> None:
    """Otherwise a model that only had large requests would refuse everyone with a deadline."""
    clock = Clock()
    session = TakesMilliseconds(clock)

    async def main() -> None:
        with CountingExecutor() as executor:
            batcher = Batcher(session, SMALL_PARTS, executor, clock=clock)
            for _ in range(20):
                await batcher.submit(rows(*range(14, 30)), 16)
            assert executor.submitted == 20
            assert batcher._admission.run_seconds() == pytest.approx(0.004)

    asyncio.run(main())


@pytest.mark.parametrize(("count", "calls"), [(48, 1), (100, 2), (1000, 4)])
def test_what_runs_in_one_go_has_an_end(count: int, calls: int) -> None:
    """By time (50 ms here) or by the number of parts, as each is some work on the event loop."""
    clock = Clock()
    session = TakesMilliseconds(clock) if count <= 100 else Doubler(seconds=1.0)

    async def main() -> None:
        with CountingExecutor() as executor:
            batcher = Batcher(session, SMALL_PARTS, executor, clock=clock)
            await batcher.submit([np.full(count, 7)], count)
            assert executor.submitted == calls

    asyncio.run(main())


def test_after_outputs_of_another_size_the_request_runs_whole() -> None:
    class Sums(Doubler):
        def run(self, inputs: Sequence[Any], options: Options | None = None) -> list[Any]:
            super().run(inputs, options)
            return [inputs[0].sum(keepdims=True)]

    session = Sums(seconds=1.0)

    async def scenario(batcher: Batcher) -> None:
        assert (await batcher.submit(TEN, 10))[0].tolist() == [55]

    run(session, scenario, SMALL_PARTS)
    assert [len(batch) for batch in session.batches] == [4, 10]


def test_a_large_request_lets_one_that_comes_meanwhile_run_after_its_current_part() -> None:
    session = Pausing()

    async def scenario(batcher: Batcher) -> None:
        large = batcher.submit(TEN, 10)
        await session.until_begun()
        small = batcher.submit(rows(50), 1, caller="other")
        session.goes_on.release(20)
        assert (await small)[0].tolist() == [100]
        assert (await large)[0].tolist() == [2 * value for value in range(1, 11)]
        assert batcher.queued_rows == 0

    run(session, scenario, SMALL_PARTS)
    assert session.batches[0] == [1, 2, 3, 4]
    assert 50 in session.batches[1]


def test_a_large_request_that_is_cancelled_ends_after_its_current_part() -> None:
    session = Pausing()

    async def scenario(batcher: Batcher) -> None:
        large = batcher.submit(TEN, 10)
        await session.until_begun()
        large.cancel()
        session.goes_on.release(20)
        assert (await batcher.submit(rows(50), 1))[0].tolist() == [100]
        assert batcher.queued_rows == 0

    run(session, scenario, SMALL_PARTS)
    assert session.batches == [[1, 2, 3, 4], [50]]


@pytest.mark.parametrize("bad", [2, 6, 10])
def test_a_large_request_with_a_part_that_fails_runs_whole_and_fails(bad: int) -> None:
    values = [13 if value == bad else value for value in range(1, 11)]

    async def scenario(batcher: Batcher) -> None:
        with pytest.raises(InternalError):
            await batcher.submit(rows(*values), 10)
        assert (await batcher.submit(rows(50), 1))[0].tolist() == [100]
        assert batcher.queued_rows == 0

    run(Doubler(seconds=1.0), scenario, SMALL_PARTS)


class FailsWhenJoined(Doubler):
    """Fails on every batch of two requests or more, and notes the thread of every run."""

    def __init__(self) -> None:
        super().__init__(seconds=1.0)
        self.threads: list[int] = []

    def run(self, inputs: Sequence[Any], options: Options | None = None) -> list[Any]:
        self.threads.append(threading.get_ident())
        if len(inputs[0]) > 1:
            raise RuntimeError("joined")
        return super().run(inputs)


def test_members_of_a_failed_slow_batch_are_run_again_off_the_event_loop() -> None:
    session = FailsWhenJoined()

    async def scenario(batcher: Batcher) -> None:
        answers = await asyncio.gather(*(batcher.submit(rows(value), 1) for value in range(6)))
        assert [answer[0].tolist() for answer in answers] == [[2 * value] for value in range(6)]

    run(session, scenario)
    assert len(session.threads) == 7  # one joined run, then one run per request
    assert threading.get_ident() not in session.threads


def test_cancelled_requests_make_room_in_a_full_queue() -> None:
    session = Doubler(seconds=1.0)
    session.may_run.clear()

    async def scenario(batcher: Batcher) -> None:
        running = batcher.submit(rows(1), 1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # its turn came: it has left the queue for the thread
        batcher.submit(rows(2), 1).cancel()
        batcher.submit(rows(3), 1).cancel()
        accepted = batcher.submit(rows(4), 1)
        session.may_run.set()
        await asyncio.gather(running, accepted)

    run(session, scenario, BatchLimits(max_queue=2))
    assert session.batches == [[1], [4]]


class Threads(Doubler):
    """Notes the thread of every run, which takes `seconds` by `clock`."""

    def __init__(self, timing: Timing, clock: Clock) -> None:
        super().__init__()
        self.timing = timing
        self.clock = clock
        self.seconds = 0.0
        self.on_loop: list[bool] = []

    def run(self, inputs: Sequence[Any], options: Options | None = None) -> list[Any]:
        self.on_loop.append(threading.current_thread() is threading.main_thread())
        assert (options is None) == self.on_loop[-1]  # a run in a thread can be ended
        self.clock.now += self.seconds
        return super().run(inputs)


def test_a_shape_gets_to_the_loop_by_short_runs_and_off_it_by_a_long_one() -> None:
    cpu = Clock()
    session = Threads(Timing(clock=cpu), cpu)

    async def scenario(batcher: Batcher) -> None:
        for _ in range(6):
            await batcher.submit(rows(1), 1)
        session.seconds = 8.0
        for _ in range(6):
            await batcher.submit(rows(1), 1)

    run(session, scenario)
    assert session.on_loop == [False] * 4 + [True] * 3 + [False] * 5


@pytest.mark.parametrize("is_busy", [True, False])
def test_a_model_that_was_warmed_up_leaves_the_loop_by_cpu_time_only(is_busy: bool) -> None:
    wall, cpu = Clock(), Clock()

    class Slower(Threads):
        """Takes 20 ms by the wall: of its own, unless another program has the core."""

        def run(self, inputs: Sequence[Any], options: Options | None = None) -> list[Any]:
            cpu.now += 0 if is_busy else self.seconds
            return super().run(inputs, options)

    session = Slower(Timing(is_known=True, rows=16, clock=cpu), wall)

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(session, BatchLimits(), executor, clock=wall)
            await batcher.submit(rows(1), 1)
            session.seconds = 0.02
            for _ in range(40):
                await batcher.submit(rows(1), 1)

    asyncio.run(main())
    on_loop = 41 if is_busy else 3
    assert session.on_loop == [True] * on_loop + [False] * (41 - on_loop)


def test_a_run_whose_device_is_in_use_does_not_wait_for_it_on_the_loop() -> None:
    device = threading.Lock()
    session = Threads(Timing(is_known=True, rows=16, device=device), Clock())

    async def scenario(batcher: Batcher) -> None:
        await batcher.submit(rows(1), 1)
        with device:
            await batcher.submit(rows(2), 1)
        await batcher.submit(rows(3), 1)

    run(session, scenario)
    assert session.on_loop == [True, False, True]


class Endless(Doubler):
    """Runs 13 until it is ended, or until `may_run` if it does not obey."""

    def __init__(self, *, obeys: bool = True) -> None:
        super().__init__()
        self.timing = Timing()
        self.obeys = obeys
        self.begun = threading.Event()
        self.ended = threading.Event()
        self.stopped = threading.Event()  # by a test that fails

    def run(self, inputs: Sequence[Any], options: Options | None = None) -> list[Any]:
        if 13 not in inputs[0]:
            return super().run(inputs)
        self.batches.append(inputs[0].tolist())
        self.begun.set()
        assert options is not None
        while self.obeys and not options.terminate and not self.stopped.is_set():
            pass
        assert self.may_run.wait(120)
        self.ended.set()
        raise RuntimeError("ended")


def test_a_run_is_ended_after_its_time_and_its_requests_do_not_run_again() -> None:
    session = Endless()
    clock = Clock()

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(session, BatchLimits(max_run_s=0.05), executor, clock=clock)
            joined = [batcher.submit(rows(value), 1) for value in (1, 13)]
            while not session.begun.is_set():
                await asyncio.sleep(0)
            clock.now += 1.0
            for each in joined:
                with pytest.raises(DeadlineExceeded, match=r"0.05 seconds \(max_run_seconds\)"):
                    await each
            assert (await batcher.submit(rows(2), 1))[0].tolist() == [4]

    asyncio.run(main())
    assert session.batches == [[1, 13], [2]]


def test_a_run_is_ended_although_the_loop_looked_just_before_its_time() -> None:
    """uvloop rounds a wait of less than half a millisecond to none, and returns no TimerHandle."""
    session = Endless()
    clock = Clock()

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(session, BatchLimits(max_run_s=10), executor, clock=clock)
            running = batcher.submit(rows(13), 1)
            while not session.begun.is_set():
                await asyncio.sleep(0)
            clock.now += 10 - 0.0002
            try:
                async with asyncio.timeout(60):  # else it would hang where it should fail
                    looked = clock.looks
                    while clock.looks < looked + 3:
                        assert not running.done()
                        await asyncio.sleep(0)
                    clock.now += 40
                    with pytest.raises(DeadlineExceeded):
                        await running
            finally:
                session.stopped.set()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_each_run_of_a_failed_batch_has_its_own_time() -> None:
    clock = Clock()

    class Slow(FailsWhenJoined):
        """Fails joined, and takes as long as a run may in all, in parts."""

        def run(self, inputs: Sequence[Any], options: Options | None = None) -> list[Any]:
            clock.now += 0.04
            looked = clock.looks
            while clock.looks < looked + 2:  # until the batcher has asked how long this run lasts
                time.sleep(0.001)
            return super().run(inputs, options)

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(Slow(), BatchLimits(max_run_s=0.05), executor, clock=clock)
            answers = await asyncio.gather(*(batcher.submit(rows(value), 1) for value in (1, 2)))
            assert [answer[0].tolist() for answer in answers] == [[2], [4]]

    asyncio.run(main())


def test_a_run_is_ended_when_nobody_waits_for_it() -> None:
    session = Endless()

    async def scenario(batcher: Batcher) -> None:
        first, last = [batcher.submit(rows(value), 1) for value in (1, 13)]
        while not session.begun.is_set():
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not session.ended.is_set()
        last.cancel()
        assert (await batcher.submit(rows(2), 1))[0].tolist() == [4]

    run(session, scenario)
    assert session.batches == [[1, 13], [2]]


def test_a_run_that_does_not_obey_is_reported_once_and_nothing_waits_for_it() -> None:
    session = Endless(obeys=False)
    session.may_run.clear()
    loop = VirtualTimeLoop()
    hangs: list[float] = []

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(
                session,
                BatchLimits(max_run_s=10),
                executor,
                clock=loop.time,
                on_hang=lambda: hangs.append(loop.now),
            )
            start = loop.now
            hanging = batcher.submit(rows(13), 1)
            with pytest.raises(DeadlineExceeded):
                await hanging
            assert loop.now == pytest.approx(start + 10)
            waiting = batcher.submit(rows(1), 1)
            with pytest.raises(Unavailable, match="worker is replaced"):
                await waiting
            assert hangs == [pytest.approx(start + 15)]
            with pytest.raises(Unavailable):
                await batcher.submit(rows(1), 1)
            assert batcher.queued_rows == 0
            session.may_run.set()
            while not session.ended.is_set():
                await asyncio.sleep(0)
            # Its end is taken up in a later turn of the loop.
            await loop.run_in_executor(executor, lambda: None)
            await asyncio.sleep(0)
            assert (await batcher.submit(rows(2), 1))[0].tolist() == [4]
            assert len(hangs) == 1

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())


def test_time_in_which_the_machine_is_too_busy_for_the_loop_is_none_of_a_run() -> None:
    session = Endless()
    loop = VirtualTimeLoop()

    async def starve(seconds: float) -> None:
        """The loop gets no core for so long, and then a turn."""
        loop.now += seconds
        await asyncio.sleep(0.06)

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            limits = BatchLimits(max_run_s=10)
            batcher = Batcher(session, limits, executor, clock=loop.time)
            start = loop.now
            hanging = batcher.submit(rows(13), 1)
            while not session.begun.is_set():
                await asyncio.sleep(0)
            await starve(9)
            await starve(9)
            await starve(9)
            assert not hanging.done()
            with pytest.raises(DeadlineExceeded):
                await hanging
            assert 36 < loop.now - start < 38
            # No run lasts longer than four times max_run_s.
            session.begun.clear()
            start = loop.now
            hanging = batcher.submit(rows(13), 1)
            while not session.begun.is_set():
                await asyncio.sleep(0)
            while not hanging.done():
                await starve(1)
            assert 40 < loop.now - start < 42
            assert isinstance(hanging.exception(), DeadlineExceeded)

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())


BAD = -1  # a row on which the model of the state machine fails


class HeldExecutor(Executor):
    """A thread whose work happens when the test says so."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.work: list[Callable[[], None]] = []
        self.submitted_at = 0.0
        self._clock = clock

    def submit(self, function: Any, /, *arguments: Any, **keywords: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.submitted_at = self._clock()
        self.work.append(lambda: future.set_result(function(*arguments, **keywords)))
        return future


@dataclass
class Sent:
    """A request of the state machine; its rows are `first`, `first` + 1, ..."""

    caller: str
    first: int
    rows: int
    is_bad: bool
    deadline: float | None
    outputs: asyncio.Future[list[Any]]
    ran_at: list[int] = field(default_factory=list)  # the numbers of the runs


@hypothesis_settings(max_examples=100, stateful_step_count=60, deadline=None)
class BatcherMachine(RuleBasedStateMachine):
    """Whatever callers, runs and the clock do, each request ends once and with its own rows."""

    BATCH, PART, MAX_QUEUE = 8, 16, 60
    is_batchable = True

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.errors: list[Any] = []
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self.executor = HeldExecutor(self.loop.time)
        self.sent: list[Sent] = []
        self.rows = 0
        self.runs = 0
        self.run_s = 0.01
        machine = self

        class Session(Doubler):
            batchable = self.is_batchable

            def run(self, inputs: Sequence[Any], options: Options | None = None) -> list[Any]:
                return machine.run_model(inputs[0])

        session = Session()
        # Every run is in the thread, whatever this machine does meanwhile.
        session.timing = Timing(is_known=True, rows=16, fixed_s=1.0, clock=self.loop.time)
        self.batcher = Batcher(
            session,
            BatchLimits(
                max_batch_size=self.BATCH,
                part_rows=self.PART,
                max_queue=self.MAX_QUEUE,
                max_run_s=1e9,
            ),
            self.executor,
            clock=self.loop.time,
        )

    def run_model(self, values: Any) -> list[Any]:
        self.runs += 1
        self.loop.now += self.run_s
        for request in self.sent:
            if np.any((values >= request.first) & (values < request.first + request.rows)):
                request.ran_at.append(self.runs)
                # Expired work is not run. The batch was taken when the executor got it.
                if request.deadline is not None:
                    late = request.deadline <= self.executor.submitted_at
                    self.errors += [f"{request} was run late"] * late
        if BAD in values:
            raise RuntimeError("a bad row")
        return [values * 2]

    def turn(self) -> None:
        async def a_few_turns() -> None:
            for _ in range(4):
                await asyncio.sleep(0)

        self.loop.run_until_complete(a_few_turns())

    @rule(
        caller=st.sampled_from("abc"),
        rows=st.one_of(st.integers(1, 6), st.integers(7, 80)),
        is_bad=st.sampled_from([False] * 9 + [True]),
        seconds=st.none() | st.floats(-0.01, 0.3),
        count=st.integers(1, 5),
    )
    def submit(
        self, caller: str, rows: int, is_bad: bool, seconds: float | None, count: int
    ) -> None:
        async def submit_one(values: Any, deadline: float | None) -> asyncio.Future[list[Any]]:
            return self.batcher.submit([values], rows, deadline, caller)

        for _ in range(count):
            values = np.arange(self.rows, self.rows + rows)
            if is_bad:
                values[-1] = BAD
            deadline = None if seconds is None else self.loop.now + seconds
            waiting = self.batcher.queued_rows
            try:
                outputs = self.loop.run_until_complete(submit_one(values, deadline))
            except Overloaded:
                # An idle model refuses no request.
                assert waiting or self.executor.work
            else:
                self.sent.append(Sent(caller, self.rows, rows, is_bad, deadline, outputs))
                self.rows += rows

    @precondition(lambda self: self.sent)
    @rule(number=st.integers(0, 1000))
    def cancel(self, number: int) -> None:
        self.sent[number % len(self.sent)].outputs.cancel()

    @rule(seconds=st.floats(0, 0.2))
    def wait(self, seconds: float) -> None:
        self.loop.now += seconds
        self.turn()

    @rule(run_s=st.sampled_from([0.001, 0.05, 3.0]))
    def change_speed(self, run_s: float) -> None:
        self.run_s = run_s

    @precondition(lambda self: self.executor.work)
    @rule()
    def finish_run(self) -> None:
        (work,) = self.executor.work
        self.executor.work.clear()
        work()
        self.turn()

    @invariant()
    def rows_are_accounted_for(self) -> None:
        queue = self.batcher._queue
        flows = [*queue._small.values(), *queue._large.values()]
        waiting = [queued for flow in flows for queued in flow.requests]
        left = [q.rows - (q.progress.taken if q.progress else 0) for q in waiting]
        assert queue.rows == sum(left) == sum(flow.rows for flow in flows)
        assert queue.requests == len(waiting)
        assert queue.large_rows == sum(flow.rows for flow in flows if flow.is_large)
        assert len(self.executor.work) <= 1

    @invariant()
    def nothing_is_resolved_twice(self) -> None:
        assert not self.errors

    def teardown(self) -> None:
        self.turn()
        for _ in range(self.rows + len(self.sent) + 1):
            if self.executor.work:
                self.finish_run()
        assert not self.executor.work
        assert self.batcher.queued_rows == 0
        for request in self.sent:
            self.check(request)
        for caller in "abc":
            # Requests that run whole and only once start in the order in which they were sent.
            plain = [r for r in self.sent if r.caller == caller and len(r.ran_at) == 1]
            small = [r.ran_at[0] for r in plain if r.rows <= self.PART and not r.is_bad]
            if not any(r.is_bad for r in self.sent):
                assert small == sorted(small)
        self.nothing_is_resolved_twice()
        self.loop.close()

    def check(self, request: Sent) -> None:
        outputs = request.outputs
        assert outputs.done()
        if outputs.cancelled():
            return
        error = outputs.exception()
        if error is None:
            assert not request.is_bad
            (values,) = outputs.result()
            assert values.tolist() == [
                2 * row for row in range(request.first, request.first + request.rows)
            ]
        elif isinstance(error, InternalError):
            assert request.is_bad
        elif isinstance(error, DeadlineExceeded):
            assert request.deadline is not None
            if request.rows <= self.PART or not self.is_batchable:
                assert not request.ran_at  # expired work is never run
        else:
            assert isinstance(error, Overloaded)
            assert not request.ran_at


class UnbatchedMachine(BatcherMachine):
    """The same for a model whose requests run whole and alone."""

    is_batchable = False


TestBatcherMachine = BatcherMachine.TestCase
TestUnbatchedMachine = UnbatchedMachine.TestCase


class Echo(Doubler):
    """Gives its input back, as ONNX Runtime gives texts back: only if they are UTF-8."""

    def run(self, inputs: Sequence[Any], options: Options | None = None) -> list[Any]:
        self.batches.append(inputs[0].tolist())
        if inputs[0].dtype.kind == "S":
            return [np.array([text.decode() for text in inputs[0]], object)]
        return [inputs[0]]


def test_texts_that_are_not_utf8_run_alone_and_their_answer_is_the_clients_error() -> None:
    session = Echo()

    async def scenario(batcher: Batcher) -> None:
        texts = [np.array(["a"], object), np.array([b"b"]), np.array([b"\xff"])]
        answers = await asyncio.gather(
            *[batcher.submit([text], 1) for text in texts], return_exceptions=True
        )
        assert [answer[0].tolist() for answer in answers[:2]] == [["a"], ["b"]]
        assert isinstance(answers[2], InvalidArgument)
        assert "not UTF-8" in answers[2].message

    run(session, scenario)
    assert session.batches == [["a"], [b"b"], [b"\xff"]]
