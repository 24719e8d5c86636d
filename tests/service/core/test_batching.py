from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from service.core.batching import Batcher, BatchLimits
from service.core.errors import DeadlineExceeded, InternalError, Overloaded
from service.core.placement import Timing


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
        assert self.may_run.wait(10)
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
        await first
        await batcher.submit(rows(4), 1)

    run(Doubler(), scenario, BatchLimits(max_queue=2))


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

    def __call__(self) -> float:
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
